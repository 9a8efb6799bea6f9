"""A skill in memory: low-rank factors beside the weights of a base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from expertise.errors import SkillError
from expertise.skills.card import Card


# Compared by identity, because `==` on tensors gives no single truth value.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """Low-rank change of one weight: `y += scaling * (x @ A.T) @ B.T` (LoRA, arXiv 2106.09685, Eq. 3).

    Linear and Conv1D layers: `A [r, in]`, `B [out, r]`, whichever way round the layer stores its own weight.
    Stacked experts: `A [E, r, in]`, `B [E, out, r]`. Embeddings: `A [r, vocabulary]`, `B [dim, r]`.

    Raises:
        SkillError: the shapes do not belong together, or the dtype is not a floating one.
    """

    A: Tensor
    """Projection into the low rank."""
    B: Tensor
    """Projection out of the low rank."""
    scaling: float
    """Multiplier, computed from rank and alpha."""
    embedding: bool = False
    """True if the adapted layer is an embedding: x holds ids, each of which picks a column of A."""

    def __post_init__(self) -> None:
        down, up = self.A, self.B
        if down.ndim not in (2, 3) or down.ndim != up.ndim or down.shape[:-2] != up.shape[:-2]:
            raise SkillError(
                f"factors must be [r, in] and [out, r], not {list(down.shape)} and {list(up.shape)}"
            )
        if down.shape[-2] != up.shape[-1] or 0 in down.shape or 0 in up.shape:
            raise SkillError(
                f"factors of shape {list(down.shape)} and {list(up.shape)} have no rank in common"
            )
        if self.embedding and down.ndim != 2:
            raise SkillError(f"factors of an embedding have two dimensions, not {down.ndim}")
        if not (down.dtype.is_floating_point and down.dtype == up.dtype):
            raise SkillError(f"factors must share a floating dtype, not {down.dtype} and {up.dtype}")
        if not math.isfinite(self.scaling):
            raise SkillError(f"a scaling must be finite, not {self.scaling}")

    @property
    def rank(self) -> int:
        """Rank r; for experts, of each expert."""
        return self.A.shape[-2]

    @property
    def num_experts(self) -> int | None:
        """Number of experts E; None for a weight that is not a stack."""
        return self.A.shape[0] if self.A.ndim == 3 else None

    @property
    def in_features(self) -> int:
        """Width of the input; for an embedding the size of the vocabulary."""
        return self.A.shape[-1]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.B.shape[-2]

    def delta(self) -> Tensor:
        """The change of the weight, `scaling * B @ A`: `[out, in]` or `[E, out, in]`.

        Embeddings and Conv1D keep their weight the other way round: there the change is this, transposed.
        """
        return self.scaling * (self.B @ self.A)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Factors:
        """Copy to another device or dtype."""
        down, up = (t.to(device=device, dtype=dtype) for t in (self.A, self.B))
        return dataclasses.replace(self, A=down, B=up)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Skill:
    """Low-rank factors for some weights of a base.

    An address is the dotted name in the base, without any prefix of PEFT's: of the module for a linear layer,
    a Conv1D or an embedding (`blocks.0.attention.qkv`), of the parameter for stacked experts
    (`blocks.1.feed_forward.parts.gate_up`). Several stacks of one module stand in the order in which the
    module registers them: PEFT's layout keeps that order and not their names.

    Raises:
        SkillError: it adapts nothing.
    """

    name: str
    """Name of the skill."""
    factors: Mapping[str, Factors]
    """Address of each adapted weight → its factors."""
    card: Card | None = None
    """Card from the library; None if the skill is not from one, or its folder has no card."""

    def __post_init__(self) -> None:
        if not self.factors:
            raise SkillError(f"skill {self.name!r} adapts nothing")
        object.__setattr__(self, "factors", dict(self.factors))  # who gave it may go on changing theirs

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Skill:
        """Copy to another device or dtype."""
        moved = {address: f.to(device=device, dtype=dtype) for address, f in self.factors.items()}
        return dataclasses.replace(self, factors=moved)

    def num_params(self) -> int:
        """Number of parameters of all factors."""
        return sum(f.A.numel() + f.B.numel() for f in self.factors.values())
