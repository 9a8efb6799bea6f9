"""Ends of episodes: the names that others give to them, and the refusal of names that only look like one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.checks import column_of, flags_of
from expertise.shapes import Bool

TERMINALS = ("terminals", "terminal", "terminations", "termination", "terminated", "terminateds")
"""Nothing could follow: D4RL, DSRL, d3rlpy; Minari; Gymnasium; RLlib."""
TIMEOUTS = ("timeouts", "timeout", "truncations", "truncation", "truncated", "truncateds")
"""The record was cut, though more could have come: D4RL, DSRL; Minari; Gymnasium; RLlib."""
DONES = ("dones", "done")
"""The episode is over, for either reason: robomimic, and Gym before it told the two apart."""
_KNOWN = (*TERMINALS, *TIMEOUTS, *DONES)

_STEMS = re.compile(r"terminal|terminat|timeout|timelimit|truncat|done|episode|trajector|absorb")
_WORDS = re.compile(
    r"(is|not|non)?(end|last|first|start|begin|reset|final|finish|finished|over|gameover|stop|continue|mask|"
    r"discount)s?"
)
_OF_EPISODES = re.compile(
    r"(episode|ep|eps|trajectory|trajectories|traj|path|rollout|sequence)s?"
    r"(id|idx|ind|index|indice|indexe|num|number|no|end|start|len|length|first|last|boundary|boundarie|size)s?"
)
_COUNTERS = re.compile(
    r"(episode|ep|eps|trajectory|traj|path|rollout|sequence)s?(step|timestep|time|count|counter)?s?|"
    r"steptype|(time|env)?steps?(id|idx|index|count|counter)?|t"
)
"""Names of numbers that tell ends by how they go on: of the episode, of the step in it, of its kind."""
_NEAR = 0.75
"""From here on a key looks like a known one misspelt."""


class Ends(NamedTuple):
    """Where the episodes of a record end, as `Transitions` has it, and what should be said about it."""

    terminals: Bool[np.ndarray, " rows"]
    timeouts: Bool[np.ndarray, " rows"]
    notes: tuple[str, ...]


def may_be_end(key: str) -> bool:
    """Whether a key is one of the known names, or reads like another name for the same."""
    compact = _compact(key.rpartition("/")[2])
    return (
        key in _KNOWN
        or bool(_STEMS.search(compact) or _WORDS.fullmatch(compact))
        or bool(_OF_EPISODES.fullmatch(compact) or _COUNTERS.fullmatch(compact))
        or bool(difflib.get_close_matches(compact, _KNOWN, n=1, cutoff=_NEAR))
    )


def ends_of(arrays: Mapping[str, Any], rows: int, where: str) -> Ends:
    """Where episodes end, from whichever of the known names are there.

    `dones` say that an episode is over and not why: where timeouts or terminals are there too, the rest of
    the dones are the other kind; alone they count as terminals.

    Args:
        arrays: everything that the file holds, or that `may_be_end` accepts of it.
        rows: how many rows the observations have.
        where: the file, for messages.

    Raises:
        DataError: two names of one kind disagree, an array is no column of flags for these rows, or, where
            the known names do not tell both kinds of ends, another array looks like one of them.
    """
    terminals = _one_of(TERMINALS, arrays, rows, where)
    timeouts = _one_of(TIMEOUTS, arrays, rows, where)
    dones = _one_of(DONES, arrays, rows, where)
    found = [flags for flags in (terminals, timeouts, dones) if flags is not None]
    none = np.zeros(rows, bool)
    over = np.any([none, *found], axis=0)
    ended = bool(over.any())
    if not ended or timeouts is None or len(found) < 2:
        _refuse_others(arrays, over, where)
    notes: list[str] = []
    if not ended:
        names = [key for key in _KNOWN if key in arrays]
        what = f"{_listed(names)} mark no row" if names else "it has none of terminals, timeouts and the like"
        notes.append(f"note: no end of an episode in {where}: {what}; all {rows:,} rows are one trajectory")
    elif dones is None and timeouts is None:
        name = _listed([key for key in TERMINALS if key in arrays])
        notes.append(
            f"note: {where} has {name} and no timeouts: an episode that was cut, not ended, runs on into the "
            "next"
        )
    elif dones is not None and terminals is None and timeouts is None:
        name = _listed([key for key in DONES if key in arrays])
        notes.append(
            f"note: {name} of {where} do not say whether an episode ended or was cut: all count as ended "
            "(call them timeouts where they were cut)"
        )
    if dones is not None:
        if terminals is None:
            terminals = dones & ~(none if timeouts is None else timeouts)
        elif timeouts is None:
            timeouts = dones & ~terminals
        elif (dones & ~terminals & ~timeouts).any():
            row = int(np.flatnonzero(dones & ~terminals & ~timeouts)[0])
            name = _listed([key for key in DONES if key in arrays])
            raise DataError(
                f"{where}: {name} end an episode in row {row}, terminals and timeouts do not",
                "leave in the file what is right",
            )
    return Ends(
        none if terminals is None else terminals, none if timeouts is None else timeouts, tuple(notes)
    )


def _one_of(names: Iterable[str], arrays: Mapping[str, Any], rows: int, where: str) -> np.ndarray | None:
    """The flags under whichever of these names is there."""
    first, result = "", None
    for key in names:
        if key not in arrays:
            continue
        flags = flags_of(arrays[key], key, where)
        if len(flags) != rows:
            raise DataError(f"{where}: {key!r} has {len(flags)} rows, 'observations' has {rows}")
        if result is not None and not np.array_equal(result, flags):
            raise DataError(f"{where}: {first!r} and {key!r} disagree", "leave one of them in the file")
        if result is None:
            first, result = key, flags
    return result


def _refuse_others(arrays: Mapping[str, Any], over: Bool[np.ndarray, " rows"], where: str) -> None:
    """Refuse what looks like ends under another name: passed over, episodes would run into each other.

    Args:
        arrays: everything that may be one.
        over: where known names say that an episode is over.
        where: the file, for messages.
    """
    for key, value in arrays.items():
        if key in _KNOWN or not may_be_end(key) or isinstance(value, Mapping):
            continue
        compact = _compact(key.rpartition("/")[2])
        if (
            _OF_EPISODES.fullmatch(compact)
            or _is_flags(value, key, len(over), where)
            or (_COUNTERS.fullmatch(compact) and _tells_more(value, key, over, where))
        ):
            raise DataError(
                f"{where}: {key!r} looks like ends of episodes, and is not one of the names for them",
                f"rename it: {TERMINALS[0]!r} where nothing could follow, {TIMEOUTS[0]!r} where it was cut",
                "or leave it out of the file if it is neither",
            )


def _is_flags(value: Any, key: str, rows: int, where: str) -> bool:
    try:
        column = column_of(value, key, where)
    except DataError:
        return False
    return len(column) == rows and bool(np.isin(column, (0, 1)).all())


def _tells_more(value: Any, key: str, over: Bool[np.ndarray, " rows"], where: str) -> bool:
    """Whether whole numbers, one a row, break off elsewhere than where episodes are known to be over."""
    try:
        column = column_of(value, key, where)
    except DataError:
        return False
    if len(column) != len(over) or not (np.isfinite(column) & (column == np.round(column))).all():
        return False
    steps, counts = np.unique(np.diff(column), return_counts=True)
    breaks = np.diff(column) != steps[counts.argmax()] if len(steps) else np.zeros(0, bool)
    return bool((breaks & ~over[:-1]).any())


def _compact(key: str) -> str:
    return re.sub(r"[^a-z]", "", key.lower())


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) for name in names)
