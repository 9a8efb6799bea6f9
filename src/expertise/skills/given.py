"""Weights as a caller may give them: numbers, names with numbers, or skills row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from expertise.errors import SkillError, counted, nearest

OURS = ("weights", "skills", "context")
"""Arguments that a call of a composed model accepts beside the base's own."""

Row = str | Mapping[str, float] | None
"""Skills of one row of a batch: one by its name, several with weights, or none."""


def one_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The one argument that was given; None values are left out.

    Raises:
        SkillError: more than one thing was, or something that is not ours.
    """
    for key in given:
        if key not in OURS:
            raise SkillError(f"unknown argument {key!r}", nearest(key, OURS))
    chosen = {key: value for key, value in given.items() if value is not None}
    if len(chosen) > 1:
        raise SkillError(f"give one of weights, skills and context, not {' and '.join(chosen)}")
    return chosen


def as_weights(weights: Any, names: Sequence[str]) -> Tensor:
    """Convert named or ordered weights to a vector `[K]`, float32; a missing name counts as 0.

    Raises:
        SkillError: a name is unknown, or there is not one finite number per skill.
    """
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise SkillError(f"this model has no skill {name!r}", nearest(str(name), names))
        weights = [weights.get(name, 0.0) for name in names]
    vector = _numbers(weights)
    if vector.shape != (len(names),):
        shown = len(vector) if vector.ndim == 1 else f"shape {list(vector.shape)}"
        raise SkillError(f"{counted(len(names), 'skill needs', 'skills need')} as many weights, not {shown}")
    return vector


def as_table(weights: Any, names: Sequence[str]) -> Tensor:
    """Convert alpha of a call: by name, or `[K]`, `[rows, K]` or `[rows, tokens, K]`; tensors are not
    changed.

    Raises:
        SkillError: its shape is another one.
    """
    if isinstance(weights, Mapping):
        return as_weights(weights, names)
    table = weights if isinstance(weights, Tensor) else _numbers(weights)
    if table.shape[-1:] != (len(names),) or table.ndim > 3:
        raise SkillError(
            f"weights of shape {list(table.shape)} do not fit {len(names)} skills: "
            "[K], [rows, K] or [rows, tokens, K]"
        )
    return table if table.is_floating_point() else table.float()


def of_rows(rows: Any, names: Sequence[str]) -> Tensor | None:
    """Alpha `[rows, K]` from the skills of each row; None if no row has any.

    Raises:
        SkillError: it is no list of `Row`, or a name is unknown.
    """
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise SkillError("skills is a list with one entry per row: a name, names with weights, or None")
    table = []
    for row in rows:
        if not (row is None or isinstance(row, str | Mapping)):
            raise SkillError(f"an entry of skills is a name, names with weights, or None, not {row!r}")
        table.append(as_weights({row: 1.0} if isinstance(row, str) else row or {}, names))
    return torch.stack(table) if any(row.any() for row in table) else None


def _numbers(weights: Any) -> Tensor:
    try:
        numbers = torch.as_tensor(weights, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise SkillError(f"weights of skills are numbers, not {weights!r}") from None
    if not isinstance(weights, Tensor) and not numbers.isfinite().all():
        raise SkillError(f"weights of skills must be finite, not {numbers.tolist()}")
    return numbers


def as_numbers(weights: Tensor) -> list[float]:
    """Weights as the shortest decimal numbers that float32 reads back unchanged: 0.7, not 0.699999988."""
    return [float(str(number)) for number in weights.detach().cpu().float().numpy()]
