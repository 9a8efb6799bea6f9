"""A layer of a base with skills beside it: one mixture whose `always` is the frozen layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.mixture import Mixture
from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.mixture.routers.base import Router
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
        self.ranks = tuple(f.rank for f in factors.values())
        self.embedding = target.kind == "embedding"
        self.mixture = Mixture(router, _stacked(target, list(factors.values()), trainable), layer)
        # Not a child: the composition stands once in the tree, wherever it was put.
        self._composition = (composition,)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for x `[..., in]`, or for ids `[...]` where it is an embedding."""
        if self.embedding:
            return self._embed(x)
        mixture, composition = self.mixture, self._composition[0]
        if mixture.router is not None and not composition.is_given:
            return mixture(x, context=x)  # type: ignore[no-any-return]
        routes = composition.routes(x.shape[:-1].numel(), self.columns)
        if routes is None:
            return mixture.always(x)  # type: ignore[misc, no-any-return]
        return mixture(x, routes=routes)  # type: ignore[no-any-return]

    def _embed(self, ids: Tensor) -> Tensor:
        mixture, composition, parts = self.mixture, self._composition[0], self.parts
        y: Tensor = mixture.always(ids)  # type: ignore[misc]
        flat = y.reshape(-1, y.shape[-1])
        if mixture.router is not None and not composition.is_given:
            routes = mixture.router(flat, flat)
        else:
            routes = composition.routes(ids.numel(), self.columns)
        if routes is None:
            return y
        mixture.note(routes)
        low = F.embedding(ids.reshape(-1), parts.lora_A.flatten(0, 1).t())
        scale = getattr(mixture.always, "embed_scale", None)
        if scale is not None:
            low = low * scale
        added = F.linear(parts.scaled(low, routes.weights()), parts.joined_B())
        return (flat + added).view(y.shape)

    @property
    def parts(self) -> LowRankExperts:
        """The skills, stacked."""
        assert isinstance(self.mixture.parts, LowRankExperts)
        return self.mixture.parts

    def slots(self) -> Iterator[Slot]:
        """The factors of each skill here."""
        parts = self.parts
        for index, (skill, rank) in enumerate(zip(self.columns, self.ranks, strict=True)):
            yield Slot(
                skill,
                Factors(
                    A=parts.lora_A[index, :rank],
                    B=parts.lora_B[index, :, :rank],
                    scaling=float(parts.scaling[index]),
                    embedding=self.embedding,
                ),
            )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "mixture" not in self._modules:
                raise
            return getattr(self.mixture.always, name)


def _stacked(target: Target, factors: Sequence[Factors], trainable: bool) -> LowRankExperts:
    """Skills of one layer in one stack; smaller ranks are filled up with zeros, which add nothing."""
    rank = max(f.rank for f in factors)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        parts = LowRankExperts(len(factors), target.in_features, target.out_features, rank)
    down = torch.stack([F.pad(f.A.detach(), (0, 0, 0, rank - f.rank)) for f in factors])
    up = torch.stack([F.pad(f.B.detach(), (0, rank - f.rank)) for f in factors])
    parts.lora_A = nn.Parameter(down, requires_grad=trainable)
    parts.lora_B = nn.Parameter(up, requires_grad=trainable)
    parts.scaling = torch.tensor([f.scaling for f in factors], device=down.device)
    return parts
