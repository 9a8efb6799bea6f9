"""Top-p routing: as many parts per token as are needed to exceed a given probability mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from expertise.mixture.routers.configs import RoutingDtype, Scale, ScoreFunction, TopPConfig
from expertise.mixture.routers.learned import LearnedRouter, Scores
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


class TopP(LearnedRouter):
    """Softmax, sorted, kept through the part whose cumulated probability first exceeds p (Dynamic MoE §2.2).

    At least one part; all of them where the sum never exceeds p. Gates are the raw probabilities, so they
    add up to a number in (p, 1]. "Exceeds" is strict, as in the released code.

    A loss-free bias changes the order in which parts are taken; the mass that is cumulated stays the true
    probability, so p keeps its meaning whatever the bias. (Out of order the mass grows more slowly: a token
    may take more parts than without the bias, but never less mass.)

    Args:
        dim: width of a token.
        num_parts: E.
        p: mass to pass, in (0, 1].
        max_parts: most parts per token, whatever their mass; None: no cap.
        normalize: divide the gates by their sum over the chosen parts.
        scale: constant on the gates, or "mean-one" (then each token's own number of parts counts).
        scores: "softmax", or "sigmoid" of each logit; the mass is then their share of the sum.
        bias_step: step of the loss-free bias, which is added to the scores in the order; 0: no bias.
        routing_dtype: "float32", or "activation" to compute scores in x's dtype.
        hidden: widths of an MLP before the centroids.
        nothing: have one more centroid, whose choice adds nothing; a token may then take no part at all.

    Raises:
        RecipeError: a value is out of range.
    """

    Config = TopPConfig

    def __init__(
        self,
        dim: int,
        num_parts: int,
        p: float,
        max_parts: int | None = None,
        normalize: bool = False,
        scale: Scale = 1.0,
        *,
        scores: ScoreFunction = "softmax",
        bias_step: float = 0.0,
        routing_dtype: RoutingDtype = "float32",
        hidden: Sequence[int] = (),
        nothing: bool = False,
    ) -> None:
        config = TopP.Config(
            p=p,
            max_parts=max_parts,
            normalize=normalize,
            scale=scale,
            scores=scores,
            bias_step=bias_step,
            routing_dtype=routing_dtype,
            hidden=list(hidden),
            nothing=nothing,
        )
        config.check(num_parts)
        super().__init__(dim, num_parts, config)
        self.p = p
        self.max_parts = max_parts
        self.nothing = nothing

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Choose parts for each token of x until their mass passes p; `context` is not used."""
        scores = self.score(x)
        # With a cap only that many of the greatest parts can be taken: no need to sort the rest.
        part_ids = self.ranked(scores.raw, self.num_slots)
        return self.routes(scores, part_ids, self.num_used(scores.affinities.gather(-1, part_ids)))

    def routes(
        self,
        scores: Scores,
        part_ids: Int[Tensor, "tokens slots"],
        counts: Int[Tensor, " tokens"] | None,
    ) -> Routes:
        """Build the routes; with `nothing`, that centroid is removed once the gates are made."""
        routes = super().routes(scores, part_ids, counts)
        return _without_last(routes) if self.nothing else routes

    @property
    @override
    def num_slots(self) -> int:
        return self.max_parts or len(self.weight)

    @property
    def num_least(self) -> int:
        """Fewest parts of a token: 1, or 0 if `nothing` may be chosen."""
        return 1 - self.nothing

    def num_used(self, probabilities: Float[Tensor, "tokens slots"]) -> Int[Tensor, " tokens"]:
        """Number of ranked parts that each token needs to pass p; all of them if their mass never passes
        it."""
        # A part stays if the mass BEFORE it has not passed p, so the part that crosses p stays.
        # Probabilities never exceed 1; only the rounding of their sum may.
        passed = probabilities.detach().cumsum(-1) > (self.p if self.p < 1 else math.inf)
        return 1 + (~passed[:, :-1]).sum(-1)

    def _shown(self) -> list[str]:
        return [f"p={self.p}", f"max_parts={self.max_parts}", *["nothing=True"] * self.nothing]


def _without_last(routes: Routes) -> Routes:
    """Remove the last part from the routes; each token's other parts move up into its slot."""
    assert routes.part_ids is not None
    num_parts = routes.num_parts - 1
    kept = (routes.part_ids >= 0) & (routes.part_ids < num_parts)
    order = torch.sort(~kept, dim=-1, stable=True).indices[:, : min(routes.num_slots, num_parts)]
    return Routes(
        gates=torch.where(kept, routes.gates, 0.0).gather(-1, order),
        affinities=routes.affinities[:, :num_parts],
        part_ids=torch.where(kept, routes.part_ids, -1).gather(-1, order),
        counts=kept.sum(-1),
    )
