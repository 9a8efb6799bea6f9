"""Packages that only policies need: imported where they are used, named where they are missing."""

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
    """A module of an optional package.

    Args:
        module: its dotted name.
        what: what needs it, in words.
        extra: how the package is installed: an extra of ours, or "safety".

    Raises:
        MissingExtra: it is not installed; the command that installs it is named.
    """
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(extra, what) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep simulators from warning while they are imported and built.

    They warn about their own use of others, which a user cannot change. Some also write to the descriptor of
    standard output: where a notebook or a test has put something without one in its place, the real one is
    put back meanwhile.
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
    """Package → version, of those that decide what simulators and teachers give, and are installed."""
    found = {"expertise": __version__}
    for name in _DECISIVE:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
