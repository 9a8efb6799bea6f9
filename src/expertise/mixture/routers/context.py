"""Context routing: a small network turns a context vector into dense weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.mixture.routers.base import ContextKind, Router
from expertise.mixture.routers.fixed import one_each
from expertise.mixture.routes import Routes
from expertise.shapes import Float

Squash = Literal["softmax", "sigmoid", "none"]
"""What bounds the weights: a softmax (they sum to 1), a sigmoid (each in 0 to 1), or nothing (any sign)."""

Start = list[float] | Literal["random"]
"""Weights before any training: constant ones (none given: 1 / K each), or those that a new network gives."""


class Context(Router):
    """Dense weights alpha(context) for all parts from an MLP (PSEC, arXiv 2502.05932, §4.2).

    Every part is taken by every token; the weights are the same for all tokens that share a context.

    Args:
        context_dim: width of the context vector.
        num_parts: K.
        hidden: widths of the hidden layers.
        squash: "softmax", "sigmoid" or "none".
        normalize: divide each context by its root mean square.
        start: the weights at first: one for each part (an empty list: 1 / K each) for every context, from
            which training goes on, or "random".

    Raises:
        RecipeError: a width is not positive, squash is none of these, or start cannot be.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of a context router."""

        name: Literal["context"] = "context"
        """Which router."""
        context_dim: Annotated[int, Ge(0)] = 0
        """Width of the context vector; 0: that of the tokens, which is right wherever skills are weighed."""
        hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
        """Widths of the hidden layers, ReLU after each (PSEC's release: 256, 256)."""
        squash: Squash = "none"
        """What bounds the weights."""
        normalize: bool = False
        """Divide each context by its root mean square: for hidden states, whose size differs by model."""
        start: Start = "random"
        """Weight of each part at first, whatever the context; empty: 1 over their number; "random" (PSEC's
        release): what a new network gives, near 0."""

        def check(self, num_parts: int) -> None:
            """Refuse a start for another number of parts, or one that the squash cannot give."""
            _outputs(self.start, num_parts, self.squash)

        def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> Context:
            """The router over `num_parts` parts."""
            width = self.context_dim or dim
            return Context(width, num_parts, self.hidden, self.squash, self.normalize, self.start)

        def num_params(self, dim: int, num_parts: int) -> int:
            """Learned numbers of the MLP."""
            widths = [self.context_dim or dim, *self.hidden, num_parts]
            return sum((a + 1) * b for a, b in itertools.pairwise(widths))

        def num_active_parts(self, num_parts: int) -> float:
            """All of them."""
            return float(num_parts)

        def has_logits(self) -> bool:
            """Only under a softmax are the weights probabilities."""
            return self.squash == "softmax"

    context_kind: ClassVar[ContextKind] = "a context vector"

    def __init__(
        self,
        context_dim: int,
        num_parts: int,
        hidden: Sequence[int] = (256, 256),
        squash: Squash = "none",
        normalize: bool = False,
        start: Start = "random",
    ) -> None:
        super().__init__()
        widths = [context_dim, *hidden, num_parts]
        if min(widths) < 1:
            raise RecipeError(f"a context router's widths must be positive, not {widths}")
        if squash not in get_args(Squash):
            raise RecipeError(f"squash is one of {', '.join(get_args(Squash))}, not {squash!r}")
        self.context_dim = self.in_features = context_dim
        self.num_parts = num_parts
        self.squash = squash
        self.normalize = normalize
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        outputs = _outputs(start, num_parts, squash)
        if outputs is not None:
            # Constant at first: the last layer gives its bias, and the others learn once its weight is not 0.
            last = self.network[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.tensor(outputs))

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Dense routes for the tokens of x.

        Args:
            x: tokens; only their leading shape counts.
            context: vectors whose leading shape is x's, or its beginning (one vector for a whole sequence).

        Raises:
            RecipeError: there is no context, or its shape does not fit.
        """
        leading = x.shape[:-1]
        if not isinstance(context, Tensor) or not context.is_floating_point() or not context.ndim:
            raise RecipeError("a context router needs context vectors, one per token or one per sequence")
        if context.shape[-1] != self.context_dim or context.shape[:-1] != leading[: context.ndim - 1]:
            raise RecipeError(
                f"the context of shape {list(context.shape)} does not fit tokens of shape {list(leading)} "
                f"and a context router of width {self.context_dim}"
            )
        if self.normalize:
            context = F.rms_norm(context, context.shape[-1:])
        logits = self.network(context.to(self.network[-1].weight.dtype))
        if context.ndim <= len(leading):
            logits = logits.view(*context.shape[:-1], *[1] * (len(leading) - context.ndim + 1), -1)
            logits = logits.expand(*leading, self.num_parts)
        logits = logits.reshape(-1, self.num_parts)
        if self.squash == "softmax":
            gates = torch.softmax(logits, dim=-1)
            return Routes(gates=gates, affinities=gates, logits=logits)
        return Routes.dense(torch.sigmoid(logits) if self.squash == "sigmoid" else logits)

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        shown = f"context_dim={self.context_dim}, num_parts={self.num_parts}, squash={self.squash!r}"
        return f"{shown}, normalize=True" if self.normalize else shown


def _outputs(start: Start, num_parts: int, squash: Squash) -> list[float] | None:
    """What the network must give so that the squashed weights are those of `start`; None: "random".

    Raises:
        RecipeError: there is not one weight for each part, or the squash cannot give them.
    """
    if isinstance(start, str):
        if start not in get_args(get_args(Start)[1]):
            raise RecipeError(f"a context router's start is a list of weights or 'random', not {start!r}")
        return None
    weights = one_each(start, num_parts, "start")
    if squash == "none":
        return weights
    least, most = min(weights), max(weights)
    if squash == "softmax":
        if least <= 0 or not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
            raise RecipeError(
                f"a softmax gives weights above 0 that sum to 1, not start = {weights}",
                'give others, or start = "random"',
            )
        return [math.log(weight) for weight in weights]
    if least <= 0 or most >= 1:
        raise RecipeError(
            f"a sigmoid gives weights between 0 and 1, not start = {weights}",
            'give others, or start = "random"',
        )
    return [math.log(weight / (1 - weight)) for weight in weights]
