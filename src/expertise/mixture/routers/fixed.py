"""Constant weights: the same for every token, given or learnt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class Fixed(Router):
    """The same weights for every token and every context.

    Args:
        num_parts: K.
        values: the weight of each part; empty: 1 / K each.
        learn: whether they are a parameter that training changes.

    Raises:
        RecipeError: there are values, and not one finite number for each part.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of constant weights."""

        name: Literal["fixed"] = "fixed"
        """Which router."""
        values: list[float] = dataclasses.field(default_factory=list)
        """Weight of each part; empty: 1 over their number."""
        learn: bool = False
        """Whether they are a start only, and training changes them."""

        def __post_init__(self) -> None:
            if not all(map(math.isfinite, self.values)):
                raise RecipeError(f"a fixed router's values must be finite, not {self.values}")

        def check(self, num_parts: int) -> None:
            """Refuse weights for another number of parts."""
            one_each(self.values, num_parts, "values")

        def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Fixed:
            """The router over `num_parts` parts."""
            return Fixed(num_parts, self.values, self.learn)

        def num_params(self, dim: int, num_parts: int) -> int:
            """Learned numbers: the weights, where they learn."""
            return num_parts if self.learn else 0

        def num_active_parts(self, num_parts: int) -> float:
            """All of them."""
            return float(num_parts)

        def has_logits(self) -> bool:
            """No: nothing is scored."""
            return False

    def __init__(self, num_parts: int, values: Sequence[float] = (), learn: bool = False) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.values = nn.Parameter(torch.tensor(one_each(values, num_parts, "values")), requires_grad=learn)

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Dense routes with the same weights for every token of x; `context` is not used."""
        # A copy: a view of a parameter asks for gradients even in inference mode.
        return Routes.dense(self.values.repeat(x.shape[:-1].numel(), 1))

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return f"num_parts={self.num_parts}, learn={self.values.requires_grad}"


def one_each(values: Sequence[float], num_parts: int, what: str) -> list[float]:
    """A weight for each part: the given ones, or 1 / K each where none is given.

    Args:
        values: K numbers, or none.
        num_parts: K.
        what: what the numbers are called, for the message.

    Raises:
        RecipeError: there are values, and not one for each part.
    """
    if num_parts < 1 or len(values) not in (0, num_parts):
        raise RecipeError(f"{what} has {len(values)} weights for {num_parts} parts")
    return list(values) or [1 / num_parts] * num_parts
