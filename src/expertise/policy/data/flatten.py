"""Observations in parts, as dictionaries of arrays, put end to end in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expertise.errors import DataError, nearest

Layout = tuple[tuple[str, int], ...]
"""Parts by name, in their order, with the width of each."""


def flattened(value: Any, keys: Sequence[str], key: str, where: str) -> tuple[Any, Layout]:
    """Observations as one array, and the parts that it is made of; an array is left as it is, without parts.

    Parts stand in the order of their names, those within a part likewise, as `gymnasium.spaces.flatten` has
    them for a dictionary; tuples keep their order. A part of any shape becomes a row of numbers per step.

    Args:
        value: an array, or arrays by name, nested at will.
        keys: names of parts, in the order wanted (`place`, or `arm/joints` within another); empty: all.
        key: what the value is called in messages.
        where: the file, for messages.

    Raises:
        DataError: a part is missing, or they differ in length; or `keys` are given for one array.
    """
    if not isinstance(value, Mapping | tuple):
        if keys:
            raise DataError(
                f"{where}: {key!r} is one array, without parts {', '.join(keys)}",
                "leave observation_keys out",
            )
        return value, ()
    parts = dict(_leaves(value, ""))
    if not parts:
        raise DataError(f"{where}: {key!r} is empty")
    for name in keys:
        if name not in parts:
            raise DataError(f"{where}: {key!r} has no part {name!r}", nearest(name, parts))
    rows = [_rows(parts[name], f"{key}/{name}", where) for name in keys or parts]
    lengths = {len(array) for array in rows}
    if len(lengths) > 1:
        shown = ", ".join(f"{name} {len(array)}" for name, array in zip(keys or parts, rows, strict=True))
        raise DataError(f"{where}: the parts of {key!r} have different numbers of rows: {shown}")
    layout = tuple((name, array.shape[1]) for name, array in zip(keys or parts, rows, strict=True))
    return np.concatenate(rows, 1), layout


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        items = [(str(name), value[name]) for name in sorted(value, key=str)]
    elif isinstance(value, tuple):
        items = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        yield path, value
        return
    for name, inner in items:
        yield from _leaves(inner, f"{path}/{name}" if path else name)


def _rows(value: Any, key: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{where}: {key!r} holds lists of unequal length") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: {key!r} holds {array.dtype}, not numbers")
    if not array.ndim:
        raise DataError(f"{where}: {key!r} is a single number, not one for each row")
    return array.reshape(len(array), -1) if len(array) else array.reshape(0, 1)
