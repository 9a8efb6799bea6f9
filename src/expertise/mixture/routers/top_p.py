"""Top-p routing: as many parts per token as it takes to hold a given probability mass."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
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


class TopP(Router):
    """Softmax, sorted, kept through the part whose cumulated probability first exceeds p (Dynamic MoE §2.2).

    At least one part; all of them where the sum never exceeds p. Gates are the raw probabilities, so they
    add up to a number in (p, 1]. "Exceeds" is strict, as in the released code.

    Args:
        dim: width of a token.
        num_parts: E.
        p: mass to pass, in (0, 1].
        max_parts: take at most so many parts, whatever their mass; None: no cap.
        normalize: divide the gates by their sum over the chosen parts.
        scale: constant on the gates, or "mean-one" (then each token's own number of parts counts).
        routing_dtype: "float32", or "activation" to compute scores in x's dtype.

    Raises:
        RecipeError: a value is out of range.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of a top-p router."""

        name: Literal["top_p"] = "top_p"
        """Which router."""
        p: Annotated[float, Gt(0), Le(1)]
        """Probability mass that the chosen parts must pass."""
        max_parts: Annotated[int, Ge(1)] | None = None
        """At most so many parts per token; left out: no cap."""
        normalize: bool = False
        """Divide the gates by their sum over the chosen parts."""
        scale: Scale = 1.0
        """Constant on the gates, or "mean-one"."""
        routing_dtype: RoutingDtype = "float32"
        """Compute scores in float32, or in the "activation"'s dtype."""
        assumed_parts: Annotated[float, Ge(1)] = 2.0
        """Parts per token that counts of activated parameters and FLOPs assume."""

        def __post_init__(self) -> None:
            if not 0.0 < self.p <= 1.0:
                raise RecipeError(f"a router's p must lie in (0, 1], not {self.p}")
            if self.max_parts is not None and self.max_parts < 1:
                raise RecipeError(f"a router's max_parts must be at least 1, not {self.max_parts}")
            if self.assumed_parts < 1:
                raise RecipeError(f"a router's assumed_parts must be at least 1, not {self.assumed_parts}")
            check_gating(self.scale, self.routing_dtype)

        def check(self, num_parts: int) -> None:
            """Refuse a cap above the number of parts."""
            if self.max_parts is not None and self.max_parts > num_parts:
                raise RecipeError(
                    f"a router's max_parts ({self.max_parts}) exceeds its number of parts ({num_parts})"
                )

        def build(self, dim: int, num_parts: int) -> TopP:
            """The router for tokens of width `dim` over `num_parts` parts."""
            return TopP(
                dim, num_parts, self.p, self.max_parts, self.normalize, self.scale, self.routing_dtype
            )

        def num_params(self, dim: int, num_parts: int) -> int:
            """Learned numbers."""
            return dim * num_parts

        def num_active_parts(self, num_parts: int) -> float:
            """Parts that a token is assumed to take, for counting activated parameters."""
            return float(min(self.assumed_parts, self.max_parts or num_parts))

    def __init__(
        self,
        dim: int,
        num_parts: int,
        p: float,
        max_parts: int | None = None,
        normalize: bool = False,
        scale: Scale = 1.0,
        routing_dtype: RoutingDtype = "float32",
    ) -> None:
        super().__init__()
        config = TopP.Config(
            p=p, max_parts=max_parts, normalize=normalize, scale=scale, routing_dtype=routing_dtype
        )
        config.check(num_parts)
        self.num_parts = num_parts
        self.p = p
        self.max_parts = max_parts
        self.normalize = normalize
        self.scale = scale
        self.routing_dtype = routing_dtype
        self.weight = nn.Parameter(torch.empty(num_parts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centroids anew."""
        init_weight(self.weight)

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Parts for each token of x until their mass passes p; `context` is not used."""
        logits, affinities = softmax_affinities(x, self.weight, self.routing_dtype)
        # With a cap only so many greatest parts can matter: no need to sort the rest.
        part_ids = greatest(affinities, self.max_parts or self.num_parts)
        sorted_affinities = affinities.gather(-1, part_ids)
        # Easy to miss: a part stays when the mass BEFORE it has not passed p, so the one that crosses stays.
        # Probabilities never exceed 1; only the rounding of their sum may.
        passed = sorted_affinities.detach().cumsum(-1) > (self.p if self.p < 1 else math.inf)
        counts = 1 + (~passed[:, :-1]).sum(-1)
        used = torch.arange(part_ids.shape[-1], device=x.device) < counts[:, None]
        return Routes(
            gates=gate_values(sorted_affinities, used, self.normalize, self.scale),
            affinities=affinities,
            part_ids=torch.where(used, part_ids, -1),
            counts=counts,
            logits=logits,
        )

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return (
            f"num_parts={self.num_parts}, p={self.p}, max_parts={self.max_parts}, "
            f"normalize={self.normalize}, scale={self.scale!r}"
        )
