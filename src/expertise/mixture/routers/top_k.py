"""Top-k routing: a fixed number of parts per token."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.mixture.routers.base import (
    Router,
    RoutingDtype,
    Scale,
    check_gating,
    gate_values,
    greatest,
    init_weight,
    softmax_affinities,
)
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class TopK(Router):
    """Softmax over the routed parts, the k greatest, raw probabilities as gates (DeepSeekMoE Eqs. 9-11).

    k = 1 over full-size experts is Switch, k = 2 is GShard, both without capacity or dropped tokens.

    Args:
        dim: width of a token.
        num_parts: E, the routed parts; shared ones are not counted, they have no centroid.
        k: parts per token, 1 to E.
        normalize: divide the gates by their sum over the chosen parts.
        scale: constant on the gates, or "mean-one".
        routing_dtype: "float32", or "activation" to compute scores in x's dtype.

    Raises:
        RecipeError: a value is out of range.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of a top-k router."""

        name: Literal["top_k"] = "top_k"
        """Which router."""
        k: Annotated[int, Ge(1)]
        """Parts per token."""
        normalize: bool = False
        """Divide the gates by their sum over the chosen parts."""
        scale: Scale = 1.0
        """Constant on the gates, or "mean-one"."""
        routing_dtype: RoutingDtype = "float32"
        """Compute scores in float32, or in the "activation"'s dtype."""

        def __post_init__(self) -> None:
            if self.k < 1:
                raise RecipeError(f"a router's k must be at least 1, not {self.k}")
            check_gating(self.scale, self.routing_dtype)

        def check(self, num_parts: int) -> None:
            """Refuse more parts per token than there are."""
            if self.k > num_parts:
                raise RecipeError(f"a router's k ({self.k}) is larger than its number of parts ({num_parts})")

        def build(self, dim: int, num_parts: int) -> TopK:
            """The router for tokens of width `dim` over `num_parts` parts."""
            return TopK(dim, num_parts, self.k, self.normalize, self.scale, self.routing_dtype)

        def num_params(self, dim: int, num_parts: int) -> int:
            """Learned numbers."""
            return dim * num_parts

        def num_active_parts(self, num_parts: int) -> float:
            """Parts that a token takes, for counting activated parameters."""
            return float(min(self.k, num_parts))

    def __init__(
        self,
        dim: int,
        num_parts: int,
        k: int,
        normalize: bool = False,
        scale: Scale = 1.0,
        routing_dtype: RoutingDtype = "float32",
    ) -> None:
        super().__init__()
        TopK.Config(k=k, normalize=normalize, scale=scale, routing_dtype=routing_dtype).check(num_parts)
        self.num_parts = num_parts
        self.k = k
        self.normalize = normalize
        self.scale = scale
        self.routing_dtype = routing_dtype
        self.weight = nn.Parameter(torch.empty(num_parts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids anew."""
        init_weight(self.weight)

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """k parts for each token of x; `context` is not used."""
        logits, affinities = softmax_affinities(x, self.weight, self.routing_dtype)
        part_ids = greatest(affinities, self.k)
        gates = gate_values(affinities.gather(-1, part_ids), None, self.normalize, self.scale)
        return Routes(gates=gates, affinities=affinities, part_ids=part_ids, logits=logits)

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return f"num_parts={self.num_parts}, k={self.k}, normalize={self.normalize}, scale={self.scale!r}"
