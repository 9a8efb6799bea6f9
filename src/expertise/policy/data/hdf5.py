"""HDF5 files with flat rows: DSRL's layout, and D4RL's, which leaves the next observations out."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from expertise.errors import DataError, ExpertiseError, first_line, nearest
from expertise.policy.data.actions import Bounds
from expertise.policy.data.checks import require
from expertise.policy.data.ends import may_be_end
from expertise.policy.data.flat import NEXT, flat, wanted
from expertise.policy.data.recorded import Recorded
from expertise.policy.extras import needed
from expertise.runs.pointers import refuse_pointer

FACTS = "expertise"
"""The attribute with what is known of data that `policy collect` made, as JSON."""

_DSRL = ("costs", NEXT)
"""What DSRL's layout has and D4RL's has not."""
LOW, HIGH = "action_low", "action_high"
"""Attributes with the bounds of the actions."""


def read_dsrl(path: str) -> Recorded:
    """Data in DSRL's layout (arXiv 2306.09303): like D4RL's, with costs and with next observations.

    Args:
        path: an HDF5 file with `observations` [N, O], `next_observations` [N, O], `actions` [N, A], and
            `rewards`, `costs`, `terminals`, `timeouts` [N] or [N, 1].

    Raises:
        DataError: the file is missing, damaged or no HDF5, an array is missing, in another file, or not as
            it should be.
        MissingExtra: h5py is not installed.
    """
    return _read(path, _DSRL)


def read_d4rl(path: str) -> Recorded:
    """Data in D4RL's layout (arXiv 2004.07219).

    Where there are no next observations, each is that of the next row. Where a trajectory ends by a timeout,
    or the file by its end, the last row has none and is left out, as D4RL's own `qlearning_dataset` does.

    Args:
        path: an HDF5 file with `observations` [N, O] (or a group of arrays), `actions` [N, A], `rewards`,
            and, if they are there, `next_observations`, `costs`, and where episodes end, under any of the
            names in `ends`. Bounds of the actions may be arrays or attributes `action_low`, `action_high`.

    Raises:
        DataError, MissingExtra: as `read_dsrl`.
    """
    return _read(path)


def _read(path: str, needed_keys: tuple[str, ...] = ()) -> Recorded:
    with opened(path) as file:
        for key in needed_keys:
            without = f'layout = "d4rl" in its [[data]] table (or --layout d4rl) {_WITHOUT[key]}'
            require(file, key, path, nearest(key, file), without)
        arrays = {key: loaded(file, key, path) for key in file if wanted(key)}
        arrays |= _ends_within(file, arrays, path)
        keys, bounds = list(file), _declared(file)
    return flat(arrays, path, keys, bounds)


_WITHOUT = {"costs": "reads data without costs", NEXT: "takes the row after"}


def _ends_within(file: Any, known: Container[str], path: str) -> dict[str, Any]:
    """What looks like ends of episodes in groups such as `infos`, as `infos/…`; `known` are passed over."""
    found = {}
    for name in file:
        if name in known or hasattr(file.get(name, getlink=True), "filename"):
            continue
        group = file.get(name)
        for key in () if group is None or hasattr(group, "shape") else group:
            if may_be_end(key) and hasattr(group.get(key), "shape"):
                found[f"{name}/{key}"] = loaded(group, key, path)
    return found


def _declared(file: Any) -> Bounds | None:
    """Bounds of actions in a file's attributes; what `policy collect` wrote is in [-1, 1]."""
    if (LOW in file.attrs) != (HIGH in file.attrs):
        raise DataError(f"{file.filename} has one of the attributes {LOW!r} and {HIGH!r}, not both")
    if LOW in file.attrs:
        return Bounds.of(file.attrs[LOW], file.attrs[HIGH])
    return Bounds.of(-1.0, 1.0) if FACTS in file.attrs else None


def keys_of(path: str) -> list[str]:
    """What an HDF5 file holds at its top.

    Raises:
        DataError: the file is missing, damaged or no HDF5.
        MissingExtra: h5py is not installed.
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
    refuse_pointer(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except ExpertiseError:
        raise
    except Exception as error:  # OSError, RuntimeError, KeyError, …: by what is damaged
        raise DataError(f"{path} is cut short, or no HDF5 file: {first_line(error)}") from None


def loaded(group: Any, key: str, path: str) -> Any:
    """An array in memory; of a group all its arrays by name, however deep.

    Raises:
        DataError: one of them is in another file.
    """
    item = within(group, key, path)
    if hasattr(item, "shape"):
        return item[()]
    return {name: loaded(item, name, path) for name in item}


def within(group: Any, key: str, path: str) -> Any:
    """What a key stands for, if it is all in this file: data must not change with what lies beside them.

    Raises:
        DataError: it is a link into another file, or its numbers are in one.
    """
    link = group.get(key, getlink=True)
    elsewhere = DataError(
        f"{path}: {key!r} is in another file, which is not followed", "copy the array into this one"
    )
    if hasattr(link, "filename"):
        raise elsewhere
    item = group[key]
    # A link within the file may end at one that leads out of it.
    if item.file.filename != group.file.filename or getattr(item, "external", None):
        raise elsewhere
    if getattr(item, "is_virtual", False) and any(s.file_name != "." for s in item.virtual_sources()):
        raise elsewhere
    return item
