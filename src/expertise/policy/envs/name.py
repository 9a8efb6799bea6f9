"""A name says all about an environment: family, task, changed dynamics, how long a decision lasts."""

from __future__ import annotations

import dataclasses

from expertise.errors import RecipeError, nearest
from expertise.policy.envs.shifts import Shift

_REPEAT = "repeat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A name taken apart: `dmc/walker-walk@gravity=1.5,mass=1.5,repeat=4`."""

    family: str
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
        if not (slash and family and task) or (at and not suffix):
            raise RecipeError(
                f"{text!r} is no name of an environment", "write family/task, such as 'dmc/walker-walk'"
            )
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
        return f"{self.family}/{self.task}" + (f"@{','.join(settings)}" if settings else "")


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
