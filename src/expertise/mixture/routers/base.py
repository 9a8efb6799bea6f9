"""What every router is, and what its configuration answers."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from expertise.mixture.routes import Routes
from expertise.shapes import Float

ContextKind = Literal["nothing", "token ids", "a context vector"]
"""What a router wants as `context`."""


class Router(nn.Module, abc.ABC):
    """Chooses parts for tokens. `num_parts` is all that a mixture asks beside the call itself."""

    num_parts: int
    in_features: int | None = None
    """Width of the vectors that it reads; None: any, or it reads none."""
    context_kind: ClassVar[ContextKind] = "nothing"

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Routes for the tokens of x, flattened in order; `context` is what a router needs beside x."""


@runtime_checkable
class RouterConfig(Protocol):
    """What every router's `Config` answers; it holds what a recipe says, not the model's widths."""

    @property
    def name(self) -> str:
        """The router's name in the registry."""

    def check(self, num_parts: int) -> None:
        """Refuse, by a RecipeError, what cannot be with so many parts."""

    def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Router:
        """The router for tokens of width `dim` over `num_parts` parts; some need the vocabulary's size.

        Whoever gives a router the tokens as its context, as skills and policies do, asks for no other width.
        """

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers, without building anything."""

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token takes, known or assumed."""

    def has_logits(self) -> bool:
        """Whether its routes carry logits and probabilities, which every loss on the routes needs."""
