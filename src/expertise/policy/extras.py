"""Import packages that only policies need; if one is missing, the error names it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from expertise import __version__
from expertise.errors import MissingExtra

_DECISIVE = (
    "torch",
    "numpy",
    "mujoco",
    "dm_control",
    "gymnasium",
    "metaworld",
    "pybullet",
    "bullet-safety-gym",
    "stable-baselines3",
)


def needed(module: str, what: str, extra: str = "policy") -> Any:
    """Import a module of an optional package.

    Args:
        module: its dotted name.
        what: description of the feature that needs it.
        extra: name of the extra that installs it: one of ours, or "safety".

    Raises:
        MissingExtra: it is not installed; the message has the command that installs it.
    """
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(extra, what) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of simulators while they are imported and built.

    The warnings are about their own use of other packages, which a user cannot change. Some simulators also
    write to the file descriptor of standard output: if a notebook or a test has replaced it by an object
    without one, the real one is put back meanwhile.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stdout, sys.stderr = before


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect simulators and teachers."""
    found = {"expertise": __version__}
    for name in _DECISIVE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
