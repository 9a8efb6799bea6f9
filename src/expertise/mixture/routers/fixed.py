"""Constant weights: the same for every token, given or learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import FixedConfig, one_each
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

    Config = FixedConfig

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
