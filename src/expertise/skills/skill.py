"""A skill in memory: low-rank factors beside the weights of a base."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from expertise.errors import SkillError
from expertise.skills.card import Card


# Two of these are the same when they are one object: tensors do not compare to a single truth.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Factors:
    """What one skill adds to one weight: `y += scaling * (x @ A.T) @ B.T` (LoRA, arXiv 2106.09685, Eq. 3).

    Linear and Conv1D layers: `A [r, in]`, `B [out, r]`, whichever way round the layer stores its own weight.
    Stacked experts: `A [E, r, in]`, `B [E, out, r]`. Embeddings: `A [r, vocabulary]`, `B [dim, r]`.

    Raises:
        SkillError: the shapes do not belong together, or the dtype is not a floating one.
    """

    A: Tensor
    """Into the low rank."""
    B: Tensor
    """Out of it."""
    scaling: float
    """The multiplier, ranks and alphas already worked in."""
    embedding: bool = False
    """Whether the adapted layer looks its inputs up: x holds ids, and A's columns stand for them."""

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
        """r, of each expert where there are experts."""
        return self.A.shape[-2]

    @property
    def num_experts(self) -> int | None:
        """E, or None for a weight that is no stack."""
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
        """`scaling * B @ A`, `[out, in]` or `[E, out, in]`.

        Embeddings and Conv1D keep their weight the other way round: there the change is this, transposed.
        """
        return self.scaling * (self.B @ self.A)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Factors:
        """The same on another device or in another dtype."""
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
    """What it is called."""
    factors: Mapping[str, Factors]
    """Address → factors."""
    card: Card | None = None
    """From the library; None: not from one, or from a folder without a card."""

    def __post_init__(self) -> None:
        if not self.factors:
            raise SkillError(f"skill {self.name!r} adapts nothing")
        object.__setattr__(self, "factors", dict(self.factors))  # who gave it may go on changing theirs

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Skill:
        """The same on another device or in another dtype."""
        moved = {address: f.to(device=device, dtype=dtype) for address, f in self.factors.items()}
        return dataclasses.replace(self, factors=moved)

    def num_params(self) -> int:
        """Learned numbers."""
        return sum(f.A.numel() + f.B.numel() for f in self.factors.values())
