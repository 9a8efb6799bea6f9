"""Low-rank maps of several skills in one weight, joined along the rank, which no other skill pays for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.grouped_linear import grouped_linear
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.low_rank import is_sparse_enough
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int
from expertise.skills.skill import Factors


def of_ranks(factors: Sequence[Factors], missing: int = 0) -> tuple[Tensor, Tensor]:
    """For each of the joined ranks: which of the skills it belongs to, and that skill's scaling.

    Args:
        factors: of each skill.
        missing: so many ranks of zeros stand behind those of the skills; any owner will do for these.
    """
    exact = torch.promote_types(factors[0].A.dtype, torch.float32)
    owner = [i for i, f in enumerate(factors) for _ in range(f.rank)] + [0] * missing
    scaling = [f.scaling for f in factors for _ in range(f.rank)] + [0.0] * missing
    device = factors[0].A.device
    return torch.tensor(owner, device=device), torch.tensor(scaling, device=device, dtype=exact)


def spans(ranks: Sequence[int]) -> list[slice]:
    """Where each skill's ranks lie among the joined ones."""
    return [slice(end - r, end) for end, r in zip(itertools.accumulate(ranks), ranks, strict=True)]


class JoinedSkills(Parts):
    """K low-rank maps `s_i B_i A_i` of any ranks: `lora_A [R, in]`, `lora_B [R, out]`, R the sum of ranks.

    B is stored the other way round than in a skill: a product with a single row, as in acting, is faster so.

    Args:
        factors: of each skill; copied.
        trainable: whether they learn.
    """

    owner: Tensor
    scaling: Tensor

    def __init__(self, factors: Sequence[Factors], trainable: bool) -> None:
        super().__init__()
        self.num_parts = len(factors)
        self.in_features, self.out_features = factors[0].in_features, factors[0].out_features
        self.ranks = tuple(f.rank for f in factors)
        self.scalings = tuple(f.scaling for f in factors)
        self.layout = repr((self.ranks, self.scalings))
        """What tells skills apart whose weights of ranks differ."""
        owner, scaling = of_ranks(factors)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer("scaling", scaling, persistent=False)
        self.lora_A = nn.Parameter(torch.cat([f.A.detach() for f in factors]), requires_grad=trainable)
        self.lora_B = nn.Parameter(torch.cat([f.B.detach().t() for f in factors]), requires_grad=trainable)

    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """One skill's map."""
        span = spans(self.ranks)[part]
        low = F.linear(x, self.lora_A[span]) * self.scalings[part]
        return low @ self.lora_B[span]

    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products; ranks that differ are filled up for them."""
        down, up = self._stacks()
        low = grouped_linear(rows, down, offsets)
        sizes = offsets.diff(prepend=offsets.new_zeros(1))
        scalings = low.new_tensor(self.scalings)
        scalings = scalings.repeat_interleave(sizes, output_size=low.shape[0])
        return grouped_linear(low * scalings[:, None], up, offsets)

    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """A joined, weights, B joined: one product of rank R for the whole sum."""
        return (F.linear(x, self.lora_A) * self.weigh(gates)) @ self.lora_B

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`; the sum is made inside the second product."""
        return self.onto(y, x, self.weigh(gates))

    def weigh(self, gates: Float[Tensor, "tokens parts"]) -> Float[Tensor, "tokens all_ranks"]:
        """The weights of the ranks, in the factors' dtype; one result serves every layer that is alike."""
        return (gates.index_select(1, self.owner) * self.scaling).to(self.lora_A.dtype)

    def onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        weights: Float[Tensor, "tokens_or_one all_ranks"],
        in_place: bool = False,
    ) -> Float[Tensor, "tokens out_features"]:
        """`y` and the skills' sum.

        Args:
            y: what they are added to.
            x: tokens.
            weights: of the ranks, scalings worked in; one row counts for every token.
            in_place: write the sum into y, if its dtype allows that.
        """
        # Found in this way because a module's own attributes are slow to find, and small models feel it.
        own: dict[str, Any] = self._parameters
        down, up = own["lora_A"], own["lora_B"]
        low: Tensor = F.linear(x, down) * weights
        if low.dtype != y.dtype or low.dtype != up.dtype:
            # Autocast computes products in a dtype of its own.
            added: Tensor = low @ up
            return y + added.to(y.dtype)
        return y.addmm_(low, up) if in_place else y.addmm(low, up)

    def is_dense_for(self, routes: Routes) -> bool:
        """See `Parts`."""
        return not is_sparse_enough(routes, self.lora_A.shape[0])

    def _stacks(self) -> tuple[Tensor, Tensor]:
        """A `[K, r, in]` and B `[K, out, r]`."""
        if len(set(self.ranks)) == 1:
            shape = (self.num_parts, self.ranks[0], -1)
            down, up = self.lora_A.view(shape), self.lora_B.view(shape)
        else:
            parts, most = spans(self.ranks), max(self.ranks)
            down, up = (
                torch.stack([F.pad(joined[part], (0, 0, 0, most - part.stop + part.start)) for part in parts])
                for joined in (self.lora_A, self.lora_B)
            )
        # Each skill's B as it is in a skill: the grouped product wants it so, and whole.
        return down, up.transpose(1, 2).contiguous()

    def factors(self, embedding: bool = False) -> Iterator[Factors]:
        """Of each skill; views, so writing to them shows here."""
        for span, scaling in zip(spans(self.ranks), self.scalings, strict=True):
            yield Factors(A=self.lora_A[span], B=self.lora_B[span].t(), scaling=scaling, embedding=embedding)

    def reset_parameters(self) -> None:
        """Nothing is drawn anew: a skill's factors are its own."""

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return f"ranks={list(self.ranks)}, in_features={self.in_features}, out_features={self.out_features}"
