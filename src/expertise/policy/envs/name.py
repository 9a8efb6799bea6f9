"""A name says all about an environment: family, task, changed dynamics, how long a decision lasts."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expertise.errors import RecipeError, nearest
from expertise.policy.envs.families import FAMILIES
from expertise.policy.envs.shifts import Shift
from expertise.runs.files import sha256_of

_REPEAT = "repeat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A name taken apart: `dmc/walker-walk@gravity=1.5,mass=1.5,repeat=4`.

    Beside our families there are ids that Gymnasium knows (`Pendulum-v1`) and `module:function`.
    """

    family: str
    """A name of `FAMILIES`; empty: `task` is an id that Gymnasium knows, or `module:function`."""
    task: str
    shift: Shift = dataclasses.field(default_factory=Shift)
    repeat: int | None = None
    """Simulated steps per decision; None: the family's own number."""

    @classmethod
    def parse(cls, text: str) -> Name:
        """Take a name apart; whether family and task exist is not looked at.

        Raises:
            RecipeError: it is not of that form.
        """
        base, at, suffix = text.partition("@")
        family, slash, task = base.partition("/")
        if family not in FAMILIES and _is_of_gymnasium(base):
            family, task = "", base
        elif not (slash and family and task):
            raise _no_name(text)
        if at and not suffix:
            raise _no_name(text)
        factors: dict[str, float] = {}
        for setting in suffix.split(",") if suffix else ():
            key, _, value = setting.partition("=")
            if key in factors:
                raise RecipeError(f"{text!r} sets {key!r} twice")
            factors[key] = _factor(key, value, text)
        repeat = factors.pop(_REPEAT, None)
        if repeat is not None and (repeat < 1 or not repeat.is_integer()):
            raise RecipeError(f"{text!r}: repeat must be a whole number from 1 on")
        return cls(
            family=family, task=task, shift=Shift(**factors), repeat=None if repeat is None else int(repeat)
        )

    def __str__(self) -> str:
        settings = [f"{key}={_shown(getattr(self.shift, key))}" for key in self.shift.changed()]
        if self.repeat is not None:
            settings.append(f"{_REPEAT}={self.repeat}")
        base = f"{self.family}/{self.task}" if self.family else self.task
        return base + (f"@{','.join(settings)}" if settings else "")


def name_of(source: Any) -> str:
    """What an environment, or a callable that makes one, is called: its id, else `module:name`."""
    spec = getattr(source, "spec", None)
    if spec is not None:
        return str(spec.id)
    known = source if hasattr(source, "__qualname__") else type(source)
    return f"{known.__module__}:{known.__qualname__}"


def reference(source: Any) -> str:
    """The name by which a recipe, which is text, finds an environment again.

    Args:
        source: a name, which is checked for its form; an environment that Gymnasium makes from an id; or a
            function or a class at the top of a module.

    Raises:
        RecipeError: it is no name, or an object that no name stands for.
    """
    if isinstance(source, str):
        Name.parse(source)
        return source
    spec = getattr(source, "spec", None)
    found = name_of(source)
    again = (
        callable(source)
        if spec is None
        else not (spec.additional_wrappers or set(spec.kwargs) - {"render_mode"})
    )
    if not again or "<" in found:
        raise RecipeError(
            f"a recipe is text, and no name stands for {found}",
            "name the id of the environment, or a function at the top of a module that makes it",
        )
    return found


def code_of(name: str) -> list[str]:
    """The SHA-256 of the module that a name `module:function` points into; empty for other names.

    What was collected in an environment that has changed since is not taken for that of the present one.
    """
    module, colon, _ = Name.parse(name).task.partition(":")
    if Name.parse(name).family or not colon:
        return []
    with importable_here():
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
    path = Path(found.origin) if found is not None and found.origin else None
    return [sha256_of(path)] if path is not None and path.is_file() else []


@contextlib.contextmanager
def importable_here() -> Iterator[None]:
    """Let modules in the working folder be imported, as `python -m` does."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _is_of_gymnasium(base: str) -> bool:
    """Whether a name is `module:function`, or looks like an id of Gymnasium (which is not imported here)."""
    module, colon, rest = base.partition(":")
    if colon:
        return bool(module and rest)
    gymnasium = sys.modules.get("gymnasium")
    return re.search(r"\w-v\d+$", base) is not None or (gymnasium is not None and base in gymnasium.registry)


def _no_name(text: str) -> RecipeError:
    return RecipeError(
        f"{text!r} is no name of an environment",
        "write family/task, such as 'dmc/walker-walk', an id that Gymnasium knows, such as 'Pendulum-v1', "
        "or 'module:function'",
    )


def _shown(value: float) -> str:
    """Short, but never another number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _factor(key: str, value: str, text: str) -> float:
    known = [*Shift.keys(), _REPEAT]
    if key not in known:
        raise RecipeError(f"{text!r}: unknown change {key!r}", nearest(key, known))
    try:
        return float(value)
    except ValueError:
        raise RecipeError(f"{text!r}: {key} must be a number, not {value!r}") from None
