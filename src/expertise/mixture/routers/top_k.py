"""Top-k routing: a fixed number of parts per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from expertise.mixture.routers.configs import RoutingDtype, Scale, ScoreFunction, TopKConfig
from expertise.mixture.routers.learned import LearnedRouter
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

    Config = TopKConfig

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
