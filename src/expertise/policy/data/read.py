"""Recorded data by path: which reader, and the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from expertise.errors import DataError, RecipeError, nearest
from expertise.policy.data.checks import refuse_misspelt
from expertise.policy.data.hdf5 import keys_of
from expertise.policy.data.shipped import located
from expertise.policy.data.transitions import Transitions
from expertise.registry import Registry
from expertise.shapes import Bool

READERS = Registry(
    "layout of data",
    {
        "dsrl": "expertise.policy.data.hdf5:read_dsrl",
        "d4rl": "expertise.policy.data.hdf5:read_d4rl",
        "minari": "expertise.policy.data.minari:read_minari",
        "npz": "expertise.policy.data.arrays:read_npz",
    },
)
"""Name → function from a path (or an id) to `Transitions`. To add a layout write one and add a line."""

AUTO = "auto"
_HDF5 = (".hdf5", ".h5")
_COSTS = "costs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Recorded data, and how much of them."""

    path: str
    """A file, a folder, the id of a Minari data set, or `shipped:BallRun`, which the package brings."""
    layout: str = AUTO
    """"dsrl", "d4rl", "minari" or "npz"; "auto" looks at the path."""
    max_cost: float | None = None
    """Only trajectories that cost at most so much; None: whatever they cost."""
    min_return: float | None = None
    """Only trajectories that return at least so much; None: whatever they return."""
    trajectories: int = 0
    """Only so many of these; 0: all."""
    seed: int = 0
    """Which ones: the first of an order drawn from this."""

    def __post_init__(self) -> None:
        if self.layout != AUTO and self.layout not in READERS:
            raise RecipeError(f"layout: unknown {self.layout!r}", nearest(self.layout, [AUTO, *READERS]))
        if self.trajectories < 0 or self.seed < 0:
            raise RecipeError("trajectories and seed of data must not be negative")

    def read(self) -> Transitions:
        """The data.

        Raises:
            DataError: they are missing or not as they should be, or have fewer trajectories.
            MissingExtra: a package that reads them is not installed.
        """
        data = read(self.path, self.layout)
        if self.max_cost is not None:
            data = self._kept(data, data.episode_costs() <= self.max_cost)
        if self.min_return is not None:
            data = self._kept(data, data.returns() >= self.min_return)
        return data.shuffled(self.seed).first(self.trajectories) if self.trajectories else data

    def _kept(self, data: Transitions, wanted: Bool[np.ndarray, " trajectories"]) -> Transitions:
        if not wanted.any():
            bounds = f"max_cost {self.max_cost} and min_return {self.min_return}"
            raise DataError(f"{self.path} has no trajectory within {bounds}")
        return data.take(np.flatnonzero(wanted).tolist())


def read(path: str | Path, layout: str = AUTO) -> Transitions:
    """Recorded data.

    Args:
        path: a file, a folder, the id of a Minari data set, or `shipped:<name>` for what the package brings.
        layout: a name of `READERS`; "auto": `.npz` is npz, an HDF5 file is DSRL's when it has costs, else
            D4RL's (not where a key looks like `costs` misspelt), anything else is Minari's.

    Raises:
        RecipeError: there is no such layout.
        DataError: the data are missing or not as they should be.
        MissingExtra: a package that reads them is not installed.
    """
    path = located(str(path))
    result: Transitions = READERS[_layout(path) if layout == AUTO else layout](path)
    return result


def _layout(path: str) -> str:
    ending = Path(path).suffix.lower()
    if ending == ".npz":
        return "npz"
    if ending in _HDF5:
        keys = keys_of(path)
        if _COSTS in keys:
            return "dsrl"
        refuse_misspelt(keys, _COSTS, path, 'or name the layout, "d4rl", to read the file without costs')
        return "d4rl"
    if Path(path).is_file():
        raise DataError(
            f"{path}: unknown ending {ending!r}", "known are .hdf5, .h5 and .npz; or name the layout"
        )
    return "minari"
