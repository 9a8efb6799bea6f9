"""The errors that a user's mistake raises; a command prints one as a line and exits with code 2.

    ExpertiseError
    ├── RecipeError      a recipe or an option does not fit: unknown key, wrong value, fields that disagree
    ├── DataError        a source of text is missing, empty, unreadable or too small
    ├── RunError         a run's folder is missing, in use, damaged, or not what the recipe says
    ├── SkillError       a skill or a library is missing, damaged, of another base, or cannot be composed
    ├── MissingExtra     an optional part of the library is not installed
    ├── DeviceError      a device is absent, or its memory is too small
    ├── DiskError        a disk is full or may not be written
    └── DivergedError    training met a loss or a gradient that is not finite

Anything else that reaches the top is our fault: exit code 1, with a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_LONG = 160
"""The most characters of another library's error that are shown."""


class ExpertiseError(Exception):
    """A mistake with a remedy.

    Args:
        message: one line that names what is wrong.
        hints: at most three lines that say what to do.
    """

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.message = message
        self.hints = hints[:3]


class RecipeError(ExpertiseError):
    """A recipe, a configuration or an option does not fit."""


class DataError(ExpertiseError):
    """A source of data is missing, empty, unreadable or too small."""


class RunError(ExpertiseError):
    """A run's folder is missing, in use, damaged, or belongs to something else."""


class SkillError(ExpertiseError):
    """A skill or a library of skills is missing, damaged, belongs to another base, or cannot be composed."""


# How to install what `pip install 'expertise[extra]'` does not. "safety" is no extra: its package asks for an
# older Gymnasium, and only --no-deps installs it beside a newer one.
_HOW_TO_INSTALL = {
    "policy": ("pip install 'expertise[policy]'", "in a copy of the sources: make setup-policy"),
    "safety": (
        "pip install pybullet && pip install --no-deps bullet-safety-gym==1.4.0",
        "in a copy of the sources: make setup-safety",
    ),
}


class MissingExtra(ExpertiseError):  # noqa: N818 - reads as what it is: `raise MissingExtra("data", …)`
    """An optional part of the library is not installed.

    Args:
        extra: the extra's name in pyproject.toml, or "safety".
        what: what needed it, in words.
    """

    def __init__(self, extra: str, what: str) -> None:
        how = _HOW_TO_INSTALL.get(extra, (f"pip install 'expertise[{extra}]'",))
        super().__init__(f"{what} needs packages that are not installed", *how)
        self.extra = extra


class DeviceError(ExpertiseError):
    """A device is absent, or its memory is too small."""


class DiskError(ExpertiseError):
    """A disk is full, or may not be written."""


class DivergedError(ExpertiseError):
    """Training met a loss or a gradient that is not finite."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, shortened; some quote the bytes that they met."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = (str(text).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= _LONG else f"{line[:_LONG]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known name, or all of them where none is near.

    Args:
        name: what the user wrote.
        known: every valid name.

    Returns:
        One line, without a full stop.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known) or 'none'}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: "1 record", "12,345 records".

    Args:
        number: how many.
        noun: in the singular.
        plural: where it is not the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def amount(number: int) -> str:
    """Format a number that may be large: "12,345", "1.23 M"."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:,.2f} M"


def json_kind(value: object) -> str:
    """The kind of a value in the words of JSON: "null", "an object", "a list", "text", "a number"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (str, "text"),
        ((int, float), "a number"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
    )
    other = f"a value of type {type(value).__name__}"
    return next((name for kind, name in kinds if isinstance(value, kind)), other)
