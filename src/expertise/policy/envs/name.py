"""A name says all about an environment: family, task, changed dynamics, how long a decision lasts."""

from __future__ import annotations

import dataclasses
import re
import sys

from expertise.errors import RecipeError, nearest
from expertise.policy.envs.families import FAMILIES
from expertise.policy.envs.shifts import Shift

_REPEAT = "repeat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A name taken apart: `dmc/walker-walk@gravity=1.5,mass=1.5,repeat=4`.

    Beside our families there are ids that Gymnasium knows (`Pendulum-v1`, `ALE/Pong-v5`) and `module:function`.
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


def _is_of_gymnasium(base: str) -> bool:
    """Whether a name is `module:function`, or looks like an id of Gymnasium, which is not imported for that."""
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
