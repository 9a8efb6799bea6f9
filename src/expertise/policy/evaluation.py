"""What an evaluation found: its episodes, and some of them step by step."""

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
    """One episode."""

    seed: int
    """Of the environment."""
    steps: int
    """Decisions."""
    total: float
    """Return: the sum of its rewards."""
    cost: float
    """The sum of its costs."""
    success: bool
    """Whether its task was done at some step; False where there is no such thing."""
    alpha: tuple[float, ...] = ()
    """Mean weight of each of the policy's names, over every eighth step; empty: it weighs up nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """An episode step by step."""

    episode: int
    """Its number, from 0."""
    rewards: Float[np.ndarray, " steps"]
    costs: Float[np.ndarray, " steps"]
    alpha: Float[np.ndarray, "steps names"] | None
    """What the policy weighed up at each step; None: nothing."""
    positions: Float[np.ndarray, "steps 2"] | None
    """Where the agent was before each step; None: that says nothing there."""
    risk: Float[np.ndarray, " steps"] | None = None
    """V of the policy's safety critic before each step; above 0 it sees a cost ahead. None: no critic."""
    frames: Sequence[Any] = ()
    """Pictures, uint8 [height, width, 3]."""
    frame_steps: Sequence[int] = ()
    """Before which steps they were taken."""

    def to_json(self) -> dict[str, Any]:
        """All but the pictures, as plain values."""
        values: dict[str, Any] = {"episode": self.episode, "frame_steps": list(self.frame_steps)}
        for name in ("rewards", "costs", "alpha", "positions", "risk"):
            array = getattr(self, name)
            values[name] = None if array is None else np.round(array, 6).tolist()
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Episodes of one policy in one environment."""

    environment: str
    """Its name."""
    names: tuple[str, ...]
    """What the policy weighs up."""
    has_cost: bool
    """Whether steps there may cost something."""
    has_success: bool
    """Whether tasks there can be done."""
    cost_limit: float
    """Cost of an episode that counts as 1."""
    episodes: Sequence[Episode]
    """In the order of their numbers, whichever ended first."""
    traces: Sequence[Trace]
    """The first ones, step by step."""

    def metrics(self) -> dict[str, list[float]]:
        """Name → value of each episode: `return`, and where there are such, `normalized_reward`, `cost`,
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
        """`means_of` the columns over the episodes."""
        return means_of(self.columns())

    def columns(self) -> dict[str, list[float]]:
        """`metrics`, and as `alpha_<name>` each episode's mean of what the policy weighs up."""
        weights = zip(*(episode.alpha for episode in self.episodes if episode.alpha), strict=True)
        return self.metrics() | {
            f"alpha_{name}": list(each) for name, each in zip(self.names, weights, strict=False)
        }

    @property
    def is_safe(self) -> bool:
        """Whether the mean normalised cost is below 1; True where nothing costs."""
        return self.summary().get("normalized_cost", 0.0) < 1

    def to_json(self) -> dict[str, Any]:
        """All but the pictures, as plain values."""
        return {
            "environment": self.environment,
            "names": list(self.names),
            "cost_limit": self.cost_limit if self.has_cost else None,
            "summary": self.summary(),
            "episodes": [dataclasses.asdict(episode) for episode in self.episodes],
            "traces": [trace.to_json() for trace in self.traces],
        }


def means_of(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name → mean, and as `<name>_error` its standard error, which a single value does not have."""
    found: dict[str, float] = {}
    for name, values in columns.items():
        found[name] = float(np.mean(values))
        if len(values) > 1:
            found[f"{name}_error"] = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return found


def write_film(frames: Sequence[Any], path: Path, frames_per_second: int = 20) -> None:
    """Pictures as an MP4 file, or as a GIF where the path ends so.

    Args:
        frames: uint8 [height, width, 3], all of one size.
        path: where to.
        frames_per_second: how fast.

    Raises:
        DataError: there are no pictures.
        MissingExtra: imageio is not installed.
        DiskError: no room, no right to write, or nothing can be at that path.
    """
    if not len(frames):
        raise DataError("there are no pictures to make a film of")
    imageio = needed("imageio", "a film")
    # A GIF is timed by its pictures, in milliseconds.
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
            # ffmpeg's own error: the command, and pages of output.
            raise DiskError(f"cannot write {path}: ffmpeg fails there", "choose another folder") from None
        finally:
            beside.unlink(missing_ok=True)
