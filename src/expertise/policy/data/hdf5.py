"""HDF5 files with flat rows: DSRL's layout, and D4RL's, which leaves the next observations out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.checks import checked, require
from expertise.policy.data.transitions import Transitions
from expertise.policy.extras import needed

_DSRL = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
_D4RL = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations", "costs")


def read_dsrl(path: str) -> Transitions:
    """Data in DSRL's layout (arXiv 2306.09303): like D4RL's, with costs and with next observations.

    Args:
        path: an HDF5 file with `observations` [N, O], `next_observations` [N, O], `actions` [N, A], and
            `rewards`, `costs`, `terminals`, `timeouts` [N] or [N, 1].

    Raises:
        DataError: the file is missing, cut short or no HDF5, an array is missing or not as it should be.
        MissingExtra: h5py is not installed.
    """
    return checked(read_arrays(path, _DSRL), path)


def read_d4rl(path: str) -> Transitions:
    """Data in D4RL's layout (arXiv 2004.07219).

    The next observation is that of the next row. Where a trajectory ends by a timeout, or the file by its
    end, the last row has none and is left out, as D4RL's own `qlearning_dataset` does.

    Args:
        path: an HDF5 file with `observations` [N, O], `actions` [N, A], `rewards`, `terminals` [N], and, if
            they are there, `timeouts`, `next_observations` and `costs`.

    Raises:
        DataError, MissingExtra: as `read_dsrl`.
    """
    arrays = read_arrays(path, _D4RL, _OPTIONAL)
    arrays.setdefault("timeouts", np.zeros(len(np.atleast_1d(arrays["rewards"])), bool))
    if "next_observations" in arrays:
        return checked(arrays, path)
    # Checked as they are; only then can rows be shifted and left out.
    whole = checked({**arrays, "next_observations": arrays["observations"]}, path)
    return _with_next(whole, path)


def read_arrays(path: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arrays of an HDF5 file by their keys.

    Args:
        path: the file.
        keys: must be there.
        optional: are read if they are there.

    Raises:
        DataError: the file is missing, cut short or no HDF5, or lacks a key; the nearest one is named.
        MissingExtra: h5py is not installed.
    """
    with _opened(path) as file:
        for key in keys:
            require(file, key, path)
        found = {key: file[key] for key in (*keys, *optional) if key in file}
        for key, item in found.items():
            if not hasattr(item, "shape"):
                raise DataError(f"{path}: {key!r} is a group, not an array")
        return {key: item[()] for key, item in found.items()}


def keys_of(path: str) -> list[str]:
    """What an HDF5 file holds at its top.

    Raises:
        DataError, MissingExtra: as `read_arrays`.
    """
    with _opened(path) as file:
        return list(file)


def first_line(error: Exception) -> str:
    """What an error of another library says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    h5py = needed("h5py", f"reading {path}")
    if not Path(path).is_file():
        raise DataError(f"no file at {path}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} is cut short, or no HDF5 file: {first_line(error)}") from None


def _with_next(whole: Transitions, path: str) -> Transitions:
    """Fill in next observations from the row after, and leave out the rows that have none."""
    following = np.concatenate([whole.observations[1:], whole.observations[-1:]])
    following[whole.terminals] = whole.observations[whole.terminals]
    without = np.append(whole.timeouts[:-1], True) & ~whole.terminals
    kept = np.flatnonzero(~without)
    if not len(kept):
        raise DataError(f"{path}: no row has a next one: each trajectory is a single row")
    # The row before one that is left out now ends its trajectory.
    timeouts = (whole.timeouts | np.append(without[1:], False)) & ~whole.terminals
    arrays = {**whole.arrays(), "next_observations": following, "timeouts": timeouts}
    return Transitions(**{name: array[kept] for name, array in arrays.items()})
