"""What top-k and top-p share: scores against learned centroids, a bias for balance, gates."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import GateOptions
from expertise.mixture.routes import Routes
from expertise.shapes import Bool, Float, Int


class Scores(NamedTuple):
    """Scores of T tokens to E parts."""

    logits: Float[Tensor, "tokens parts"]
    raw: Float[Tensor, "tokens parts"]
    """What the choice goes by and gates are made of."""
    affinities: Float[Tensor, "tokens parts"]
    """Probabilities: raw itself for softmax, raw divided by its sum for sigmoid."""


class LearnedRouter(Router, abc.ABC):
    """Base of routers that score tokens against one centroid per part, `weight [E, dim]`, without a bias.

    With `hidden` widths an MLP, `trunk`, stands before the centroids, which are as wide as its last layer.

    With `bias_step` > 0 there is also a buffer `bias [E]`, added to the scores in the choice and never in a
    gate (loss-free balancing, arXiv 2408.15664); `rebalance` moves it, and it is saved with the weights.

    A router is `score`, then `ranked`, then `num_used`, then `routes`: whoever changes one of these steps, as
    the switches of an evaluation do, wraps a router and takes the others as they are.

    Args:
        dim: width of a token.
        num_parts: E.
        options: gates, scores, bias.
    """

    bias: Tensor | None

    def __init__(self, dim: int, num_parts: int, options: GateOptions) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.normalize = options.normalize
        self.scale = options.scale
        self.scores = options.scores
        self.bias_step = options.bias_step
        self.routing_dtype = options.routing_dtype
        self.in_features = dim
        self.hidden = list(options.hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([dim, *self.hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.weight = nn.Parameter(torch.empty(options.num_centroids(num_parts), [dim, *self.hidden][-1]))
        self.register_buffer("bias", torch.zeros(num_parts) if options.bias_step else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start the centroids small, so that at first no part is preferred (std 1 / dim)."""
        nn.init.normal_(self.weight, std=1.0 / self.weight.shape[-1])

    def score(self, x: Float[Tensor, "*leading dim"]) -> Scores:
        """Logits u . e_i and what is made of them (DeepSeekMoE Eq. 11, Dynamic MoE Eq. 1).

        Computed in float32 (float64 stays) even under autocast, unless `routing_dtype` is "activation".
        """
        x = x.reshape(-1, x.shape[-1])
        exact = torch.promote_types(x.dtype, torch.float32)
        dtype = exact if self.routing_dtype == "float32" else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            for layer in self.trunk:
                if isinstance(layer, nn.Linear):  # a ReLU stands after each
                    x = F.relu(F.linear(x, layer.weight.to(dtype), layer.bias.to(dtype)))
            return self.scores_of(F.linear(x, self.weight.to(dtype)))

    def scores_of(self, logits: Float[Tensor, "tokens parts"]) -> Scores:
        """Scores from logits; a part whose logit is -inf gets 0, and the others share all probability."""
        with torch.autocast(logits.device.type, enabled=False):
            if self.scores == "softmax":
                raw = torch.softmax(logits, dim=-1)
                return Scores(logits, raw, raw)
            # sigmoid / (sum of sigmoids), written so that a sum of tiny numbers does not vanish.
            return Scores(logits, torch.sigmoid(logits), torch.softmax(F.logsigmoid(logits), dim=-1))

    def ranked(self, scores: Float[Tensor, "tokens parts"], k: int) -> Int[Tensor, "tokens k"]:
        """The k parts that are greatest in score plus bias, greatest first, ties by the lower id.

        The sum is in at least float32: a bias moves by less than one step of bfloat16.
        """
        return greatest(scores if self.bias is None else scores + self.bias, k)

    @property
    @abc.abstractmethod
    def num_slots(self) -> int:
        """The most parts that a token can take."""

    @property
    @abc.abstractmethod
    def num_least(self) -> int:
        """The fewest parts that a token can take."""

    @abc.abstractmethod
    def num_used(self, probabilities: Float[Tensor, "tokens slots"]) -> Int[Tensor, " tokens"] | None:
        """How many of its ranked parts each token takes, by their probabilities; None: all of them."""

    def routes(
        self,
        scores: Scores,
        part_ids: Int[Tensor, "tokens slots"],
        counts: Int[Tensor, " tokens"] | None,
    ) -> Routes:
        """The record of a choice: the first `counts` of each token's ranked parts, with their gates."""
        raw = scores.raw.gather(-1, part_ids)
        used = None
        if counts is not None:
            used = torch.arange(part_ids.shape[-1], device=part_ids.device) < counts[:, None]
            part_ids = torch.where(used, part_ids, -1)
        return Routes(
            gates=self.gates(raw, used),
            affinities=scores.affinities,
            part_ids=part_ids,
            counts=counts,
            logits=scores.logits,
        )

    def gates(
        self, raw: Float[Tensor, "tokens slots"], used: Bool[Tensor, "tokens slots"] | None
    ) -> Float[Tensor, "tokens slots"]:
        """Gates of the chosen parts from their raw scores; unused slots get 0.

        The scores themselves by default (DeepSeekMoE Eq. 10; Dynamic MoE likewise).
        """
        scale = self.scale
        gates = raw if used is None else torch.where(used, raw, 0.0)
        if self.normalize or scale == "mean-one":
            gates = gates / (gates.sum(-1, keepdim=True) + torch.finfo(gates.dtype).tiny)
        if isinstance(scale, str):
            return gates * (gates.shape[-1] if used is None else used.sum(-1, keepdim=True))
        return gates if scale == 1.0 else gates * scale

    @torch.no_grad()
    def rebalance(self, load: Float[Tensor, " parts"] | Int[Tensor, " parts"]) -> None:
        """Move the bias by a fixed step against the load (arXiv 2408.15664, Algorithm 1).

        A part that was used less than the mean goes up by `bias_step`, one used more goes down, one used
        exactly as much stays. Without a bias nothing happens.

        Args:
            load: how much each part was used in this step, over all ranks; in any unit.
        """
        if self.bias is not None:
            load = load.to(self.bias.device, torch.float64)
            # sum - E * load has the sign of mean - load and, for counts, no rounding.
            error = load.sum() - self.num_parts * load
            self.bias += self.bias_step * torch.sign(error).to(self.bias.dtype)

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        shown = [f"num_parts={self.num_parts}", *self._shown()]
        defaults = GateOptions()
        for field in dataclasses.fields(GateOptions):
            value = getattr(self, field.name)
            if value != getattr(defaults, field.name):
                shown.append(f"{field.name}={value!r}")
        return ", ".join(shown)

    def _shown(self) -> list[str]:
        return []


def greatest(scores: Float[Tensor, "tokens parts"], k: int) -> Int[Tensor, "tokens k"]:
    """Ids of the k greatest scores of each token, greatest first, equal ones by the lower id.

    `torch.topk` breaks ties in no fixed order, and a stable sort of all parts costs twice as much; so score
    and id are packed into one integer each, which makes every key unique.
    """
    if scores.dtype == torch.float64 or scores.device.type == "mps":
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k]
    num_parts = scores.shape[-1]
    # Adding 0 turns -0 into +0. A float's bits, read as an integer, are in its own order when it is
    # positive; the other 31 bits of a negative one are flipped to bring it in order too.
    bits = (scores.detach().float() + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    reversed_ids = torch.arange(num_parts - 1, -1, -1, device=scores.device)
    keys = (ordered.to(torch.int64) << 32) | reversed_ids
    return num_parts - 1 - (torch.topk(keys, k, dim=-1).values & 0xFFFFFFFF)
