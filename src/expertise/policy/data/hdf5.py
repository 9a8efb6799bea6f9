"""HDF5 files with flat rows: DSRL's layout, and D4RL's, which leaves the next observations out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, ExpertiseError, first_line
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
        DataError: the file is missing, damaged or no HDF5, an array is missing, in another file, or not as
            it should be.
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
        DataError: the file is missing, damaged or no HDF5, lacks a key (the nearest one is named), or has it
            in another file.
        MissingExtra: h5py is not installed.
    """
    with opened(path) as file:
        for key in keys:
            require(file, key, path)
        found = {key: _within(file, key, path) for key in (*keys, *optional) if key in file}
        for key, item in found.items():
            if not hasattr(item, "shape"):
                raise DataError(f"{path}: {key!r} is a group, not an array")
        return {key: item[()] for key, item in found.items()}


def keys_of(path: str) -> list[str]:
    """What an HDF5 file holds at its top.

    Raises:
        DataError, MissingExtra: as `read_arrays`.
    """
    with opened(path) as file:
        return list(file)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """An HDF5 file to read from.

    Raises:
        DataError: the file is missing or no HDF5, or the block found it damaged.
        MissingExtra: h5py is not installed.
    """
    h5py = needed("h5py", f"reading {path}")
    if not Path(path).is_file():
        raise DataError(f"no file at {path}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ExpertiseError:
        raise
    except Exception as error:  # OSError, RuntimeError, KeyError, …: by what is damaged
        raise DataError(f"{path} is cut short, or no HDF5 file: {first_line(error)}") from None


def _within(file: Any, key: str, path: str) -> Any:
    """What a key stands for, if it is all in this file: data must not change with what lies beside them.

    Raises:
        DataError: it is a link into another file, or its numbers are in one.
    """
    link = file.get(key, getlink=True)
    elsewhere = DataError(
        f"{path}: {key!r} is in another file, which is not followed", "copy the array into this one"
    )
    if hasattr(link, "filename"):
        raise elsewhere
    item = file[key]
    # A link within the file may end at one that leads out of it.
    if item.file.filename != file.filename or getattr(item, "external", None):
        raise elsewhere
    if getattr(item, "is_virtual", False) and any(s.file_name != "." for s in item.virtual_sources()):
        raise elsewhere
    return item


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
