"""Context routing: a small network turns a context vector into dense weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import ContextConfig, Squash, Start, outputs_at_start
from expertise.mixture.routes import Routes
from expertise.shapes import Float


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

    Config = ContextConfig

    context_kind = ContextConfig.context_kind

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
        outputs = outputs_at_start(start, num_parts, squash)
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
