"""Switches for evaluation: mask top parts, drop always-on parts, use another k or p."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.lm.causal import CausalLM
from expertise.lm.config import MixtureLayer
from expertise.lm.model import LanguageModel
from expertise.mixture.mixture import Mixture
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.learned import LearnedRouter
from expertise.mixture.routes import Routes
from expertise.shapes import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """Changes to every mixture layer for an evaluation (DeepSeekMoE §4.5); the defaults change nothing."""

    mask_top: float = 0.0
    """Share of the routed parts that are masked for each token: those with its highest probabilities."""
    renew_softmax: bool = False
    """Renormalise the probabilities over the parts that are left; else they stay as they are."""
    drop_always: bool = False
    """Drop the always-on part and, unless `extra_parts` says otherwise, take one more routed part."""
    extra_parts: int | None = None
    """Number of routed parts per token beyond the router's own; None: 1 with `drop_always`, else 0."""
    k: int | None = None
    """Another k than in training (top-k)."""
    p: float | None = None
    """Another p than in training (top-p); the cap on the number of parts stays."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask_top < 1:
            raise RecipeError(f"mask_top must lie in [0, 1), not {self.mask_top}")
        if self.renew_softmax and not self.mask_top:
            raise RecipeError("renew_softmax needs mask_top: without a mask there is nothing to renew")
        if self.extra_parts is not None and self.extra_parts < 0:
            raise RecipeError(f"extra_parts must be 0 or more, not {self.extra_parts}")

    @property
    def num_extra(self) -> int:
        """Number of routed parts to take beyond those that the router takes."""
        return int(self.drop_always) if self.extra_parts is None else self.extra_parts

    @property
    def change_the_routing(self) -> bool:
        """True if routers must choose differently."""
        return bool(self.mask_top or self.num_extra) or self.k is not None or self.p is not None

    def to_json(self) -> dict[str, Any]:
        """Return the switches that are on."""
        values = dataclasses.asdict(self) | {"extra_parts": self.num_extra}
        return {name: value for name, value in values.items() if value not in (None, False, 0)}


@contextlib.contextmanager
def switched(model: CausalLM, switches: Switches) -> Iterator[CausalLM]:
    """Apply the switches to a model within the context; afterwards every module is restored.

    Args:
        model: any language model; its routers are wrapped within the context, no weight is changed.
        switches: the changes to apply.

    Yields:
        The same model.

    Raises:
        RecipeError: a switch does not apply to this model.
    """
    mixtures = model.mixtures()
    if switches.to_json() and not mixtures:
        raise RecipeError("switches change mixture layers; this model has none")
    # Make all routers before the first is set, so that an error leaves the model unchanged.
    routers = {index: _router(mixture, model, index, switches) for index, mixture in mixtures.items()}
    before = {index: (mixture.router, mixture.always) for index, mixture in mixtures.items()}
    try:
        for index, mixture in mixtures.items():
            mixture.router = routers[index]
            if switches.drop_always:
                mixture.always = None
        yield model
    finally:
        for index, mixture in mixtures.items():
            mixture.router, mixture.always = before[index]


class SwitchedRouter(Router):
    """A learned router that masks parts or takes more of them; weights and bias are the wrapped router's own.

    The parts with a token's highest probabilities are masked (the bias is not counted); the wrapped router's
    rule chooses among the rest. With the original probabilities a top-p token whose masked parts hold
    1 - p or more can never pass p: it takes every part that is left, up to the cap.

    Args:
        router: the router to wrap.
        switches: `mask_top`, `renew_softmax` and `extra_parts` are used; another k or p is set in `router`.

    Raises:
        RecipeError: the mask leaves too few parts or masks none.
    """

    def __init__(self, router: LearnedRouter, switches: Switches) -> None:
        super().__init__()
        self.num_parts = router.num_parts
        self.router = router
        self.renew_softmax = switches.renew_softmax
        self.num_extra = switches.num_extra
        self.num_masked = math.floor(switches.mask_top * router.num_parts + 0.5)
        if switches.mask_top and not self.num_masked:
            raise RecipeError(f"mask_top ({switches.mask_top}) of {self.num_parts} parts is none of them")
        if switches.renew_softmax and router.scores != "softmax":
            raise RecipeError(f"renew_softmax needs softmax scores, this router's are {router.scores!r}")
        left = self.num_parts - self.num_masked
        if left < router.num_least + self.num_extra:
            raise RecipeError(
                f"{self.num_parts} parts less {self.num_masked} masked ones are too few for "
                f"{router.num_least} per token and {self.num_extra} more"
            )
        self.num_slots = min(router.num_slots + self.num_extra, left)

    @override
    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        router = self.router
        scores = router.score(x)
        wanted = scores.raw
        if self.num_masked:
            top = torch.sort(scores.affinities, dim=-1, descending=True, stable=True).indices
            masked = torch.zeros_like(wanted, dtype=torch.bool).scatter(1, top[:, : self.num_masked], True)
            if self.renew_softmax:
                scores = router.scores_of(scores.logits.masked_fill(masked, -math.inf))
            wanted = scores.raw.masked_fill(masked, -math.inf)
        part_ids = router.ranked(wanted, self.num_slots)
        counts = router.num_used(scores.affinities.gather(-1, part_ids))
        if counts is not None:
            counts = (counts + self.num_extra).clamp(max=self.num_slots)
        return router.routes(scores, part_ids, counts)


def _router(mixture: Mixture, model: CausalLM, index: int, switches: Switches) -> Router | None:
    """Return the router of a layer under the switches."""
    assert isinstance(model.core, LanguageModel)  # no other model has mixtures of ours
    layer = model.core.config.layer(index)
    assert layer is not None
    if switches.drop_always and mixture.always is None:
        raise RecipeError(f"drop_always: layer {index} has no always-on part")
    if not switches.change_the_routing:
        return mixture.router
    router = mixture.router
    if not isinstance(router, LearnedRouter):
        raise RecipeError(
            f"a {layer.router.name!r} router learns no probabilities: it cannot choose otherwise",
            "--extra-parts 0 leaves its choice as it is",
        )
    router = _with(router, layer, {"k": switches.k, "p": switches.p})
    return SwitchedRouter(router, switches) if switches.mask_top or switches.num_extra else router


def _with(
    router: LearnedRouter, layer: MixtureLayer, changes: dict[str, int | float | None]
) -> LearnedRouter:
    """Return the router with another k or p, checked by its configuration; it shares the weight tensors."""
    # A shallow copy: parameters and buffers are shared, attributes set on it do not reach the original.
    result = copy.copy(router)
    for name, value in changes.items():
        if value is None:
            continue
        if not hasattr(layer.router, name):
            raise RecipeError(f"a {layer.router.name!r} router has no {name}")
        changed: Any = dataclasses.replace(layer.router, **{name: value})  # type: ignore[type-var]
        changed.check(router.num_parts)
        setattr(result, name, value)
    return result
