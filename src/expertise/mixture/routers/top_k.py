"""Top-k routing: a fixed number of parts per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture.routers.learned import (
    GateOptions,
    LearnedRouter,
    RoutingDtype,
    Scale,
    ScoreFunction,
)
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class TopK(LearnedRouter):
    """Softmax over the routed parts, the k greatest, raw probabilities as gates (DeepSeekMoE Eqs. 9-11).

    k = 1 over full-size experts is Switch, k = 2 is GShard, both without capacity or dropped tokens.

    Args:
        dim: width of a token.
        num_parts: E, the routed parts; shared ones are not counted, they have no centroid.
        k: parts per token, 1 to E.
        normalize: divide the gates by their sum over the chosen parts.
        scale: constant on the gates, or "mean-one".
        scores: "softmax", or "sigmoid" of each logit.
        bias_step: step of the loss-free bias, which is added to the scores in the choice; 0: no bias.
        routing_dtype: "float32", or "activation" to compute scores in x's dtype.
        hidden: widths of an MLP before the centroids.

    Raises:
        RecipeError: a value is out of range.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(GateOptions):
        """What a recipe says of a top-k router."""

        name: Literal["top_k"] = "top_k"
        """Which router."""
        k: Annotated[int, Ge(1)]
        """Parts per token."""

        def __post_init__(self) -> None:
            GateOptions.__post_init__(self)
            if self.k < 1:
                raise RecipeError(f"a router's k must be at least 1, not {self.k}")

        def check(self, num_parts: int) -> None:
            """Refuse more parts per token than there are."""
            if self.k > num_parts:
                raise RecipeError(f"a router's k ({self.k}) is larger than its number of parts ({num_parts})")

        def build(self, dim: int, num_parts: int, vocab_size: int = 0) -> TopK:
            """The router for tokens of width `dim` over `num_parts` parts."""
            return TopK(dim, num_parts, self.k, **self.options())

        def num_active_parts(self, num_parts: int) -> float:
            """Parts that a token takes, for counting activated parameters."""
            return float(min(self.k, num_parts))

        def has_logits(self) -> bool:
            """Yes."""
            return True

    def __init__(
        self,
        dim: int,
        num_parts: int,
        k: int,
        normalize: bool = False,
        scale: Scale = 1.0,
        *,
        scores: ScoreFunction = "softmax",
        bias_step: float = 0.0,
        routing_dtype: RoutingDtype = "float32",
        hidden: Sequence[int] = (),
    ) -> None:
        config = TopK.Config(
            k=k,
            normalize=normalize,
            scale=scale,
            scores=scores,
            bias_step=bias_step,
            routing_dtype=routing_dtype,
            hidden=list(hidden),
        )
        config.check(num_parts)
        super().__init__(dim, num_parts, config)
        self.k = k

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """k parts for each token of x; `context` is not used."""
        scores = self.score(x)
        return self.routes(scores, self.ranked(scores.raw, self.k), None)

    @property
    def num_slots(self) -> int:
        """k."""
        return self.k

    @property
    def num_least(self) -> int:
        """k."""
        return self.k

    def num_used(self, probabilities: Float[Tensor, "tokens slots"]) -> None:
        """Every slot is used."""

    def _shown(self) -> list[str]:
        return [f"k={self.k}"]
