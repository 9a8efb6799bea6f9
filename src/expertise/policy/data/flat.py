"""Flat rows, one trajectory after another, under the names that files of HDF5 and NumPy give to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from expertise.errors import DataError
from expertise.policy.data.actions import Bounds
from expertise.policy.data.checks import refuse_misspelt, require, rows_of
from expertise.policy.data.ends import ends_of, may_be_end
from expertise.policy.data.recorded import Recorded

NEXT = "next_observations"
_LOW, _HIGH = "action_low", "action_high"
_READ = ("observations", NEXT, "actions", "rewards", "costs", _LOW, _HIGH)
PREFIXES = ("observations/", f"{NEXT}/")
"""What the names of parts of observations begin with, where a file has no groups."""


def wanted(key: str) -> bool:
    """Whether `flat` looks at an array of this name."""
    return key in _READ or key.startswith(PREFIXES) or may_be_end(key)


def flat(found: Mapping[str, Any], where: str, keys: Iterable[str], bounds: Bounds | None = None) -> Recorded:
    """What a file of flat rows holds.

    Args:
        found: arrays by name, those that are `wanted`; observations may be in parts.
        where: the file, for messages.
        keys: the names of everything in it.
        bounds: of the actions, where the file declares them elsewhere than in the arrays `action_low` and
            `action_high`.

    Raises:
        DataError: an array is missing, or seems to be there under another name.
    """
    for key in ("observations", "actions", "rewards"):
        require(found, key, where)
    if NEXT not in found:
        _refuse_other_next(keys, where)
    rows = _rows(found["observations"], where)
    if not rows:
        raise DataError(f"{where}: 'observations' is empty")
    ends = ends_of(found, rows, where)
    arrays = {key: found[key] for key in (*_READ[:4], "costs") if key in found}
    if (_LOW in found) != (_HIGH in found):
        raise DataError(f"{where} has one of {_LOW!r} and {_HIGH!r}, not both")
    if _LOW in found:
        bounds = Bounds.of(found[_LOW], found[_HIGH])
    return Recorded(
        where=where,
        episodes=[(where, {**arrays, "terminals": ends.terminals, "timeouts": ends.timeouts})],
        whole=True,
        bounds=bounds,
        notes=ends.notes,
    )


def in_parts(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name, with `observations/place` and its like as one dictionary `observations`."""
    found: dict[str, Any] = {}
    for key, value in arrays.items():
        if key.startswith(PREFIXES) and key.partition("/")[0] not in arrays:
            name, _, part = key.partition("/")
            found.setdefault(name, {})[part] = value
        else:
            found[key] = value
    return found


def _rows(observations: Any, where: str) -> int:
    """How many rows observations have, also those in parts."""
    while isinstance(observations, Mapping) and observations:
        observations = next(iter(observations.values()))
    return 0 if isinstance(observations, Mapping) else rows_of(observations, "observations", where)


def _refuse_other_next(keys: Iterable[str], where: str) -> None:
    """Refuse next observations under another name: the rows after would be taken for them."""
    others = [key for key in keys if key != "observations"]
    refuse_misspelt(others, NEXT, where)
    for key in others:
        if "next" in key.lower() and "action" not in key.lower():
            raise DataError(f"{where} has {key!r} and no {NEXT!r}", f"rename it {NEXT!r}")
