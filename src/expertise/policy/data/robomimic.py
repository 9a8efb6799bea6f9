"""HDF5 files in robomimic's layout: a group for each demonstration, observations by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.checks import flags_of, require
from expertise.policy.data.flat import NEXT
from expertise.policy.data.hdf5 import loaded, opened, within
from expertise.policy.data.recorded import Episode, Recorded

DATA = "data"
"""The group with the demonstrations."""


def read_robomimic(path: str) -> Recorded:
    """Data in robomimic's layout (arXiv 2108.03298).

    Each demonstration is an episode. Its last row ends it: for good where `dones` says so, else the record
    was cut there. (With `done_mode` 0 earlier rows in which the task stays done are marked, too; the robot
    went on, so they end nothing.) The file has no place for bounds of the actions: robomimic wants [-1, 1].

    Args:
        path: an HDF5 file with groups `data/demo_0`, …, each with `actions`, `rewards`, `dones`, the group
            `obs`, and, where it is there, `next_obs`.

    Raises:
        DataError: the file is missing, damaged or no HDF5, has no demonstrations, or an array is missing, in
            another file, or not as it should be.
        MissingExtra: h5py is not installed.
    """
    with opened(path) as file:
        require(file, DATA, path)
        group = within(file, DATA, path)
        if hasattr(group, "shape"):
            raise DataError(f"{path}: {DATA!r} is an array, not a group of demonstrations")
        names = sorted(group, key=lambda name: (len(name), name))  # demo_2 before demo_10
        return Recorded(where=path, episodes=[_episode(group, name, path) for name in names])


def _episode(group: Any, name: str, path: str) -> Episode:
    where = f"{path}, {name}"
    try:
        demo = within(group, name, path)
        if hasattr(demo, "shape"):
            raise DataError(f"{where} is an array, not a group")
        for key in ("obs", "actions", "rewards", "dones"):
            hint = "robomimic's dataset_states_to_obs.py adds it"
            require(demo, key, where, *((hint,) if key != "actions" else ()))
        arrays = {key: loaded(demo, key, path) for key in ("actions", "rewards")}
        arrays["observations"] = loaded(demo, "obs", path)
        if "next_obs" in demo:
            arrays[NEXT] = loaded(demo, "next_obs", path)
        done = flags_of(loaded(demo, "dones", path), "dones", where)
    except DataError as error:
        return where, error
    last = np.arange(len(done)) == len(done) - 1
    return where, {**arrays, "terminals": last & done, "timeouts": last & ~done}
