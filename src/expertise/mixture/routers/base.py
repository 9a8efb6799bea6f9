"""What every router shares: scores, a choice with fixed ties, gate values."""

from __future__ import annotations

import abc
import math
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.mixture.routes import Routes
from expertise.shapes import Bool, Float, Int

Scale = float | Literal["mean-one"]
"""A constant on the routed gates; "mean-one": normalise over the chosen parts, then times their number."""

RoutingDtype = Literal["float32", "activation"]
"""Where scores are computed: at least float32, or in x's own dtype as the released codes do."""


class Router(nn.Module, abc.ABC):
    """Chooses parts for tokens. `num_parts` is all that a mixture asks beside the call itself."""

    num_parts: int

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

    def build(self, dim: int, num_parts: int) -> Router:
        """The router for tokens of width `dim` over `num_parts` parts."""

    def num_params(self, dim: int, num_parts: int) -> int:
        """Learned numbers, without building anything."""

    def num_active_parts(self, num_parts: int) -> float:
        """Parts that a token takes, known or assumed."""


def check_gating(scale: Scale, routing_dtype: RoutingDtype) -> None:
    """Refuse gate options that mean nothing.

    Raises:
        RecipeError: scale is neither a finite number nor "mean-one", or the dtype is unknown.
    """
    if isinstance(scale, str):
        if scale not in get_args(get_args(Scale)[1]):
            raise RecipeError(f"a router's scale is a number or 'mean-one', not {scale!r}")
    elif not math.isfinite(scale):
        raise RecipeError(f"a router's scale must be finite, not {scale}")
    if routing_dtype not in get_args(RoutingDtype):
        raise RecipeError(
            f"routing_dtype is one of {', '.join(get_args(RoutingDtype))}, not {routing_dtype!r}"
        )


def init_weight(weight: Tensor) -> None:
    """Start a router's centroids small, so that at first no part is preferred (std 1 / dim)."""
    nn.init.normal_(weight, std=1.0 / weight.shape[-1])


def softmax_affinities(
    x: Float[Tensor, "*leading dim"], weight: Float[Tensor, "parts dim"], routing_dtype: RoutingDtype
) -> tuple[Float[Tensor, "tokens parts"], Float[Tensor, "tokens parts"]]:
    """Logits u . e_i and their softmax over all routed parts (DeepSeekMoE Eq. 11, Dynamic MoE Eq. 1).

    Args:
        x: tokens in any leading shape.
        weight: one centroid e_i per part; no bias.
        routing_dtype: "float32" computes in float32 (float64 stays) even under autocast.

    Returns:
        logits and probabilities, in the dtype of the computation.
    """
    x = x.reshape(-1, x.shape[-1])
    dtype = torch.promote_types(x.dtype, torch.float32) if routing_dtype == "float32" else x.dtype
    with torch.autocast(x.device.type, enabled=False):
        logits = F.linear(x.to(dtype), weight.to(dtype))
        return logits, torch.softmax(logits, dim=-1)


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


def gate_values(
    affinities: Float[Tensor, "tokens slots"],
    used: Bool[Tensor, "tokens slots"] | None,
    normalize: bool,
    scale: Scale,
) -> Float[Tensor, "tokens slots"]:
    """Gates of the chosen parts from their affinities; unused slots get 0.

    Raw by default: the probability itself (DeepSeekMoE Eq. 10; Dynamic MoE likewise). `normalize` divides by
    the sum over the chosen parts; "mean-one" does that and multiplies by their number.
    """
    gates = affinities if used is None else torch.where(used, affinities, 0.0)
    if normalize or scale == "mean-one":
        gates = gates / (gates.sum(-1, keepdim=True) + torch.finfo(gates.dtype).tiny)
    if isinstance(scale, str):
        return gates * (gates.shape[-1] if used is None else used.sum(-1, keepdim=True))
    return gates if scale == 1.0 else gates * scale
