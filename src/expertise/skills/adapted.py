"""A layer of a base with skills beside it: one mixture whose `always` is the frozen layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.mixture import Mixture
from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.skills.joined import factors_of, join
from expertise.skills.routing import ask
from expertise.skills.skill import Factors
from expertise.skills.targets import Target

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


class Slot(NamedTuple):
    """One skill's factors inside an adapted layer; the tensors are views, so writing to them shows there."""

    skill: int
    """The skill's number in the composition."""
    factors: Factors


class Adapted(nn.Module):
    """A linear layer (or Conv1D) with low-rank skills: `layer(x) + sum over i of alpha_i s_i B_i A_i x`.

    PSEC (arXiv 2502.05932, §4.2). What the frozen layer has (`weight`, `bias`, its widths) is found here too.

    Args:
        layer: the frozen layer, or an adapted one when further skills are put around it.
        target: what is adapted.
        factors: skill number → its factors here.
        composition: who knows alpha.
        router: this layer's own, fed with its input; None: the composition's weights.
        trainable: whether the factors learn.
    """

    def __init__(
        self,
        layer: nn.Module,
        target: Target,
        factors: dict[int, Factors],
        composition: Composition,
        router: Router | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.columns = tuple(factors)
        """Numbers of the skills here."""
        self._known = None if len(factors) == len(composition.names) else self.columns
        self.embedding = target.kind == "embedding"
        self.mixture = Mixture(router, join(list(factors.values()), trainable), layer)
        # Not a child: the composition stands once in the tree, wherever it was put.
        self._composition = (composition,)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x `[..., in]`, or for ids `[...]` where it is an embedding."""
        if self.embedding:
            return self._embed(x)
        # Found in this way because attributes of modules are slow, and models of a few small layers feel it.
        mixture: Any = self._modules["mixture"]
        modules: dict[str, Any] = mixture._modules
        composition = self._composition[0]
        if modules.get("router") is not None or mixture._recording or composition.is_recording:
            return self._mixed(x)
        # From here on: what the mixture does, with weights that were made ready once for all layers.
        always, skills = modules["always"], modules["parts"]
        weights = composition._call.ready(x.shape[:-1], self._known, skills)
        if weights is None:
            return always(x)  # type: ignore[no-any-return]
        if isinstance(weights, Routes):
            return mixture(x, routes=weights)  # type: ignore[no-any-return]
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        # A product of rows in their order is the layer's own to the bit, and nobody else has seen it: the sum
        # may be written over it.
        if (
            type(always) is nn.Linear
            and (rows is x or (x.ndim > 1 and x.is_contiguous()))
            and not _has_hooks(always)
        ):
            own: dict[str, Any] = always._parameters
            y = F.linear(rows, own["weight"], own["bias"])
            y = skills.onto(y, rows, weights, in_place=True)
            return y if rows is x else y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]
        y = always(x)
        flat = y.reshape(-1, y.shape[-1])
        return skills.onto(flat, rows, weights).view(y.shape)  # type: ignore[no-any-return]

    def _mixed(self, x: Tensor) -> Tensor:
        routes = self._routes(x, x.shape[:-1])
        if routes is None:
            return self.mixture.always(x)  # type: ignore[misc, no-any-return]
        return self.mixture(x, routes=routes)  # type: ignore[no-any-return]

    def _routes(self, x: Tensor, leading: torch.Size) -> Routes | None:
        """Alpha here: of this layer's own router, which reads x, or the composition's; None: all zero."""
        composition, router = self._composition[0], self.mixture.router
        if router is None or composition.is_given:
            return composition.routes(leading, self._known)
        routes = ask(router, x)
        composition.note(self.columns, routes)
        return routes

    def _embed(self, ids: Tensor) -> Tensor:
        layer, parts = self.mixture.always, self.parts
        y: Tensor = layer(ids)  # type: ignore[misc]
        routes = self._routes(y, ids.shape)
        if routes is None:
            return y
        low = F.embedding(ids.reshape(-1), parts.lora_A.t(), self.padding_idx)
        scale = getattr(layer, "embed_scale", None)
        if scale is not None:
            low = low * (scale.to(low.dtype) if isinstance(scale, Tensor) else scale)
        added = (low * parts.weigh(routes.weights())) @ parts.lora_B
        return y + added.view(y.shape)

    @property
    def parts(self) -> LowRankExperts:
        """The skills, joined."""
        assert isinstance(self.mixture.parts, LowRankExperts)
        return self.mixture.parts

    @property
    def device(self) -> torch.device:
        """Where the skills are."""
        return self.parts.lora_A.device

    def slots(self) -> Iterator[Slot]:
        """The factors of each skill here."""
        for skill, factors in zip(self.columns, factors_of(self.parts, self.embedding), strict=True):
            yield Slot(skill, factors)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "mixture" not in self._modules:
                raise
            return getattr(self.mixture.always, name)


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see the module's calls, or makes its weights before them."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )
