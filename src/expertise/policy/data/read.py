"""Recorded data by path: which reader, and the data."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from expertise.errors import DataError, RecipeError, nearest
from expertise.policy.data.actions import Bounds
from expertise.policy.data.checks import refuse_misspelt
from expertise.policy.data.flat import NEXT
from expertise.policy.data.hdf5 import keys_of
from expertise.policy.data.recorded import Recorded
from expertise.policy.data.robomimic import DATA
from expertise.policy.data.shipped import located
from expertise.policy.data.transitions import Transitions
from expertise.policy.envs.environment import Environment
from expertise.policy.envs.name import Name, reference
from expertise.registry import Registry
from expertise.shapes import Bool

READERS = Registry(
    "layout of data",
    {
        "dsrl": "expertise.policy.data.hdf5:read_dsrl",
        "d4rl": "expertise.policy.data.hdf5:read_d4rl",
        "robomimic": "expertise.policy.data.robomimic:read_robomimic",
        "minari": "expertise.policy.data.minari:read_minari",
        "npz": "expertise.policy.data.arrays:read_npz",
    },
)
"""Name → function from a path (or an id) to `Recorded`. To add a layout write one and add a line."""

AUTO = "auto"
Numbers = float | int | list[float | int]
"""A number for all components, or one for each."""
_HDF5 = (".hdf5", ".h5")
_COSTS, _SEEN = "costs", "observations"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Recorded data, and how much of them."""

    path: str
    """A file, a folder, the id of a Minari data set, or `shipped:BallRun`, which the package brings."""
    layout: str = AUTO
    """"dsrl", "d4rl", "robomimic", "minari" or "npz"; "auto" looks at the path."""
    action_low: Numbers | None = None
    """Lower bound of the recorded actions, or one for each component; they are scaled to [-1, 1] by it. None:
    as the file declares it, else -1."""
    action_high: Numbers | None = None
    """Upper bound, likewise; None: as the file declares it, else 1."""
    actions: Literal["refuse", "clip"] = "refuse"
    """What to do with actions outside their bounds: "refuse" the data, or "clip" to the bounds."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What to do with a broken episode: "stop", or "skip" it; data of which more than a tenth is broken are
    refused all the same."""
    observation_keys: list[str] = dataclasses.field(default_factory=list)
    """Of observations in parts (dictionaries): which of them, in which order; empty: all, in the order of
    their names."""
    environment: str = ""
    """Where they were recorded: family/task, an id that Gymnasium knows, or module:function. Widths must be
    those of this environment; its bounds are those of the actions where neither the file nor action_low says.
    Empty: not known."""
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
        for key, known in (("actions", ("refuse", "clip")), ("on_bad", ("stop", "skip"))):
            if getattr(self, key) not in known:
                raise RecipeError(f"{key}: unknown {getattr(self, key)!r}", f"known are: {', '.join(known)}")
        self._require_bounds()
        if self.environment:
            Name.parse(self.environment)

    def _require_bounds(self) -> None:
        """Refuse bounds of actions that are none."""
        if (self.action_low is None) != (self.action_high is None):
            raise RecipeError("action_low and action_high of data go together", "give both")
        if self.action_low is None or self.action_high is None:
            return
        low, high = (end if isinstance(end, list) else [end] for end in (self.action_low, self.action_high))
        if not low or not high or not all(map(math.isfinite, [*low, *high])):
            raise RecipeError("action_low and action_high of data are finite numbers, or lists of them")
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise RecipeError(f"action_low has {len(low)} numbers, action_high {len(high)}")
        longer = max(len(low), len(high))
        for least, most in itertools.islice(zip(itertools.cycle(low), itertools.cycle(high)), longer):
            if least >= most:
                raise RecipeError(f"action_low must be below action_high, not {least:g} and {most:g}")

    def read(self) -> Transitions:
        """The data.

        Raises:
            DataError: they are missing or not as they should be, or have fewer trajectories.
            MissingExtra: a package that reads them is not installed.
        """
        path = located(self.path)
        reader = READERS[_layout(path) if self.layout == AUTO else self.layout]
        found: Recorded = reader(path)
        return self._of_environment(found) if self.environment else found.transitions(self)

    def within(self, data: Transitions) -> Transitions:
        """The trajectories within `max_cost` and `min_return`; they must still be whole.

        Raises:
            DataError: there is none, or the data have no costs.
        """
        if self.max_cost is not None:
            data = self._kept(data, data.episode_costs() <= self.max_cost)
        if self.min_return is not None:
            data = self._kept(data, data.returns() >= self.min_return)
        return data

    def drawn(self, data: Transitions) -> Transitions:
        """As many trajectories as are asked for.

        Raises:
            DataError: there are fewer.
        """
        return data.shuffled(self.seed).first(self.trajectories) if self.trajectories else data

    def _of_environment(self, found: Recorded) -> Transitions:
        """The data, held against the environment that they are from."""
        with Environment(self.environment) as here:
            bounds = Bounds.of(*here.action_bounds)
            widths = {"observations": here.observation_dim, "actions": here.action_dim}
        data = dataclasses.replace(found, bounds=found.bounds or bounds).transitions(self)
        for name, wanted in widths.items():
            width = data.arrays()[name].shape[1]
            if width != wanted:
                raise DataError(f"{self.path}: {name} are {width} wide, those of {self.environment} {wanted}")
        return data

    def _kept(self, data: Transitions, wanted: Bool[np.ndarray, " trajectories"]) -> Transitions:
        if not wanted.any():
            keys = ("max_cost", "min_return")
            bounds = [f"{key} {getattr(self, key):g}" for key in keys if getattr(self, key) is not None]
            raise DataError(f"{self.path} has no trajectory within {' and '.join(bounds)}")
        return data.take(np.flatnonzero(wanted).tolist())


def read(path: str | Path, layout: str = AUTO, **keys: Any) -> Transitions:
    """Recorded data. What a human should know of how they were read is in their `notes`.

    Args:
        path: a file, a folder, the id of a Minari data set, or `shipped:<name>` for what the package brings.
        layout: a name of `READERS`; "auto": `.npz` is npz; an HDF5 file is robomimic's when it has the group
            `data`, DSRL's when it has costs and next observations, else D4RL's (not where a key looks like
            `costs` misspelt); anything else is Minari's.
        keys: further ones of `DataConfig`, such as `action_low` and `action_high`; `environment` may be an
            object that `reference` has a name for.

    Raises:
        RecipeError: there is no such layout.
        DataError: the data are missing or not as they should be.
        MissingExtra: a package that reads them is not installed.
    """
    if "environment" in keys:
        keys["environment"] = reference(keys["environment"])
    return DataConfig(path=str(path), layout=layout, **keys).read()


def _layout(path: str) -> str:
    ending = Path(path).suffix.lower()
    if ending == ".npz":
        return "npz"
    if ending in _HDF5:
        keys = keys_of(path)
        if DATA in keys and _SEEN not in keys:
            return "robomimic"
        if any(re.fullmatch(r"episode_\d+", key) for key in keys):
            raise DataError(f"{path} holds the episodes of a Minari data set", "give its folder instead")
        if _COSTS in keys:
            return "dsrl" if NEXT in keys else "d4rl"
        refuse_misspelt(keys, _COSTS, path, 'or name the layout, "d4rl", to read the file without costs')
        return "d4rl"
    if Path(path).is_file():
        raise DataError(
            f"{path}: unknown ending {ending!r}", "known are .hdf5, .h5 and .npz; or name the layout"
        )
    return "minari"
