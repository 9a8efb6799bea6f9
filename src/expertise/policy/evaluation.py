"""Results of an evaluation: its episodes, and traces of some of them."""

from __future__ import annotations

import dataclasses
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, DiskError
from expertise.policy.data.scores import normalized_cost, on_scale
from expertise.policy.extras import needed
from expertise.runs.files import disk_errors, make_folder, require_writable
from expertise.shapes import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """Totals of one episode."""

    seed: int
    """Seed of the environment."""
    steps: int
    """Number of decisions."""
    total: float
    """Return: the sum of its rewards."""
    cost: float
    """Sum of its costs."""
    success: bool
    """True if its task was done at some step; False if the environment has no such task."""
    alpha: tuple[float, ...] = ()
    """Mean weight of each of the policy's names, over every eighth step; empty: the policy has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Record of every step of an episode."""

    episode: int
    """Number of the episode, from 0."""
    rewards: Float[np.ndarray, " steps"]
    costs: Float[np.ndarray, " steps"]
    alpha: Float[np.ndarray, "steps names"] | None
    """Weights of the policy's names at each step; None: the policy has none."""
    positions: Float[np.ndarray, "steps 2"] | None
    """Position of the agent before each step; None: the environment has no positions."""
    risk: Float[np.ndarray, " steps"] | None = None
    """V of the policy's safety critic before each step; above 0 it predicts a cost. None: no critic."""
    frames: Sequence[Any] = ()
    """Pictures, uint8 [height, width, 3]."""
    frame_steps: Sequence[int] = ()
    """Step before which each picture was taken."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields except the pictures, as plain values."""
        values: dict[str, Any] = {"episode": self.episode, "frame_steps": list(self.frame_steps)}
        for name in ("rewards", "costs", "alpha", "positions", "risk"):
            array = getattr(self, name)
            values[name] = None if array is None else np.round(array, 6).tolist()
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Episodes of one policy in one environment."""

    environment: str
    """Name of the environment."""
    names: tuple[str, ...]
    """Names that the policy weighs: skills or policies."""
    has_cost: bool
    """True if steps there may have a cost."""
    has_success: bool
    """True if the environment reports success."""
    cost_limit: float
    """Cost of an episode that counts as 1 after normalisation."""
    episodes: Sequence[Episode]
    """Episodes in the order of their numbers, not of their ends."""
    traces: Sequence[Trace]
    """Records of the first episodes."""

    def metrics(self) -> dict[str, list[float]]:
        """Return values of each episode by name: `return`, and if they exist `normalized_reward`, `cost`,
        `normalized_cost`, `success`."""
        found = {"return": [episode.total for episode in self.episodes]}
        scaled = [on_scale(self.environment, episode.total) for episode in self.episodes]
        if None not in scaled:
            found["normalized_reward"] = [value for value in scaled if value is not None]
        if self.has_cost:
            found["cost"] = [episode.cost for episode in self.episodes]
            found["normalized_cost"] = [normalized_cost(cost, self.cost_limit) for cost in found["cost"]]
        if self.has_success:
            found["success"] = [float(episode.success) for episode in self.episodes]
        return found

    def summary(self) -> dict[str, float]:
        """Return `means_of` the columns over the episodes."""
        return means_of(self.columns())

    def columns(self) -> dict[str, list[float]]:
        """Return `metrics`, and each episode's mean weights as `alpha_<name>`."""
        weights = zip(*(episode.alpha for episode in self.episodes if episode.alpha), strict=True)
        return self.metrics() | {
            f"alpha_{name}": list(each) for name, each in zip(self.names, weights, strict=False)
        }

    @property
    def is_safe(self) -> bool:
        """True if the mean normalised cost is below 1 or the environment has no costs."""
        return self.summary().get("normalized_cost", 0.0) < 1

    def to_json(self) -> dict[str, Any]:
        """Return all fields except the pictures, as plain values."""
        return {
            "environment": self.environment,
            "names": list(self.names),
            "cost_limit": self.cost_limit if self.has_cost else None,
            "summary": self.summary(),
            "episodes": [dataclasses.asdict(episode) for episode in self.episodes],
            "traces": [trace.to_json() for trace in self.traces],
        }


def means_of(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return means by name, and standard errors as `<name>_error`, which a single value does not have."""
    found: dict[str, float] = {}
    for name, values in columns.items():
        found[name] = float(np.mean(values))
        if len(values) > 1:
            found[f"{name}_error"] = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return found


def write_film(frames: Sequence[Any], path: Path, frames_per_second: int = 20) -> None:
    """Write pictures to an MP4 file, or to a GIF file if the path ends in `.gif`.

    Args:
        frames: uint8 [height, width, 3], all of one size.
        path: the file to write.
        frames_per_second: rate of the film.

    Raises:
        DataError: there are no pictures.
        MissingExtra: imageio is not installed.
        DiskError: the disk is full, writing is not permitted, or the path is impossible.
    """
    if not len(frames):
        raise DataError("there are no pictures to make a film of")
    imageio = needed("imageio", "a film")
    # A GIF has a duration per picture, in milliseconds.
    options: dict[str, Any] = {"duration": 1000 / frames_per_second}
    if path.suffix != ".gif":
        options = {"fps": frames_per_second, "ffmpeg_log_level": "quiet"}
    require_writable(path)
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
    with disk_errors(path):
        make_folder(path.parent)
        try:
            imageio.mimwrite(beside, list(frames), **options)
            os.replace(beside, path)
        except OSError as error:
            if error.errno is not None:
                raise
            # ffmpeg's own error is the command and pages of output.
            raise DiskError(f"cannot write {path}: ffmpeg fails there", "choose another folder") from None
        finally:
            beside.unlink(missing_ok=True)
