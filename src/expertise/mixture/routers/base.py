"""What every router is, and what its configuration answers."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from torch import Tensor, nn

from expertise.mixture.routers.configs import ContextKind
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class Router(nn.Module, abc.ABC):
    """Chooses parts for tokens. `num_parts` is all that a mixture asks beside the call itself."""

    num_parts: int
    in_features: int | None = None
    """Width of the vectors that it reads; None: any, or it reads none."""
    context_kind: ClassVar[ContextKind] = "nothing"

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Routes for the tokens of x, flattened in order; `context` is what a router needs beside x."""
