"""Base class of routers."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import Tensor, nn

from expertise.mixture.routers.configs import ContextKind
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class Router(nn.Module, abc.ABC):
    """Base class of routers, which choose parts for tokens. A mixture reads only `num_parts` beside the
    call."""

    num_parts: int
    in_features: int | None = None
    """Width of the vectors that the router reads; None if any width fits."""
    context_kind: ClassVar[ContextKind] = "nothing"

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Choose parts for the tokens of x, flattened in order; `context` is a further input that some
        routers need."""
