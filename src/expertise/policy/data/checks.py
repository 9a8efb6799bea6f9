"""Arrays from elsewhere, held against what `Transitions` promises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expertise.errors import DataError, nearest
from expertise.policy.data.transitions import Transitions

ROUNDING = 1e-4
"""Actions may lie outside [-1, 1] by so much, and are clipped: writers round."""

_NEAR = 0.75
"""From here on a key looks like another one misspelt."""
WIDE = ("observations", "actions", "next_observations")
"""Arrays with a row of numbers for each step."""
_FLAGS = ("terminals", "timeouts")


def checked(arrays: Mapping[str, Any], where: str) -> Transitions:
    """Transitions of arrays whose actions are in [-1, 1], cast to their types.

    Args:
        arrays: those of `Transitions`; `costs` may be absent. A column [N, 1] is taken as [N].
        where: the file, for messages.

    Raises:
        DataError: an array is missing or empty, has another shape, type or length than the others, holds a
            number that is not finite, or an action lies outside [-1, 1]; file and key are named.
    """
    require(arrays, "next_observations", where)
    found = structured(arrays, where)
    require_finite(found, where)
    worst = float(np.abs(found["actions"]).max())
    if worst > 1 + ROUNDING:
        row = int(np.abs(found["actions"]).max(1).argmax())
        raise DataError(f"{where}: 'actions' reach {worst:g} in row {row}; they must lie in [-1, 1]")
    np.clip(found["actions"], -1.0, 1.0, out=found["actions"])
    return Transitions(**found, notes=())


def structured(arrays: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """The arrays of `Transitions` with the right types and shapes; their numbers are not looked at.

    Args:
        arrays: those of `Transitions`; `costs` and `next_observations` may be absent, others are left out.
        where: the file, for messages.

    Raises:
        DataError: an array is missing or empty, or has another shape, type or length than the others.
    """
    for key in ("observations", "actions", "rewards", *_FLAGS):
        require(arrays, key, where)
    number = rows_of(arrays["observations"], "observations", where)
    if not number:
        raise DataError(f"{where}: 'observations' is empty")
    found = {key: _wide(arrays[key], key, where) for key in WIDE if key in arrays}
    found |= {key: column_of(arrays[key], key, where) for key in ("rewards", "costs") if key in arrays}
    found |= {key: flags_of(arrays[key], key, where) for key in _FLAGS}
    for key, array in found.items():
        if len(array) != number:
            raise DataError(f"{where}: {key!r} has {len(array)} rows, 'observations' has {number}")
    following = found.get("next_observations", found["observations"])
    if following.shape != found["observations"].shape:
        widths = following.shape[1], found["observations"].shape[1]
        raise DataError(f"{where}: 'next_observations' are {widths[0]} wide, 'observations' {widths[1]}")
    return found


def require_finite(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse numbers that are none.

    Raises:
        DataError: one is not finite; its row is named.
    """
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = tuple(np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"{where}: {key!r} holds {array[place]} in row {place[0]}")


def require(arrays: Mapping[str, Any], key: str, where: str, *hints: str) -> None:
    """Refuse arrays without this key.

    Raises:
        DataError: it is missing; the nearest key that is there is named, or what `hints` say.
    """
    if key not in arrays:
        raise DataError(f"{where} has no {key!r}", *(hints or (nearest(key, arrays),)))


def rows_of(value: Any, key: str, where: str) -> int:
    """How many rows an array has.

    Raises:
        DataError: it is none: lists of unequal length.
    """
    return len(np.atleast_1d(_array(value, key, where)))


def refuse_misspelt(keys: Iterable[str], wanted: str, where: str, *hints: str) -> None:
    """Refuse what looks like the name of an array that may be absent: it would be passed over in silence.

    Raises:
        DataError: there is such a key, and not the wanted one.
    """
    lower = {key.lower(): key for key in keys}
    close = difflib.get_close_matches(wanted, lower, n=1, cutoff=_NEAR)
    if close and lower[close[0]] != wanted:
        message = f"{where} has {lower[close[0]]!r} and no {wanted!r}"
        raise DataError(message, f"did you mean {wanted!r}? rename it", *hints)


def column_of(value: Any, key: str, where: str) -> np.ndarray:
    """An array with a number for each row, float32 [N]; [N, 1] is taken as that.

    Raises:
        DataError: it is none.
    """
    array = _numbers(value, key, where)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{where}: {key!r} has shape {_shape(array)}; one number per row is needed")
    return array


def flags_of(value: Any, key: str, where: str) -> np.ndarray:
    """An array with true or false for each row, bool [N]; zeros and ones are taken as that.

    Raises:
        DataError: it is none.
    """
    array = column_of(value, key, where)
    others = array[~np.isin(array, (0, 1))]
    if len(others):
        raise DataError(f"{where}: {key!r} holds {others[0]:g}; true or false is needed")
    return array.astype(bool)


def _array(value: Any, key: str, where: str) -> np.ndarray:
    if isinstance(value, Mapping):
        raise DataError(f"{where}: {key!r} is a group, not an array")
    try:
        return np.asarray(value)
    except ValueError:
        raise DataError(f"{where}: {key!r} holds lists of unequal length") from None


def _numbers(value: Any, key: str, where: str) -> np.ndarray:
    array = _array(value, key, where)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: {key!r} holds {array.dtype}, not numbers")
    with np.errstate(over="ignore"):  # what does not fit shows as infinite later
        return array.astype(np.float32)


def _wide(value: Any, key: str, where: str) -> np.ndarray:
    array = _numbers(value, key, where)
    if array.ndim != 2 or not array.shape[1]:
        raise DataError(f"{where}: {key!r} has shape {_shape(array)}; rows of numbers are needed")
    return array


def _shape(array: np.ndarray) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
