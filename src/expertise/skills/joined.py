"""Low-rank maps of several skills in one weight, joined along the rank: no skill's rank costs the others anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.grouped_linear import grouped_linear
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.low_rank import is_sparse_enough
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int
from expertise.skills.skill import Factors

class RankWeights(nn.Module):
    """From weights of skills to weights of ranks: every rank gets its skill's alpha times its scaling.

    Args:
        factors: of each skill.
        missing: so many ranks of zeros stand behind those of the skills.
        device: where the weights will be.
    """

    owner: Tensor
    scaling: Tensor

    def __init__(self, factors: Sequence[Factors], missing: int = 0) -> None:
        super().__init__()
        self.ranks = tuple(f.rank for f in factors)
        self.scalings = tuple(f.scaling for f in factors)
        owner = [i for i, rank in enumerate(self.ranks) for _ in range(rank)]
        scaling = [s for s, rank in zip(self.scalings, self.ranks, strict=True) for _ in range(rank)]
        device = factors[0].A.device
        exact = torch.promote_types(factors[0].A.dtype, torch.float32)
        # Ranks that only fill up are zeros whatever they are multiplied with: any owner will do.
        owners = torch.tensor(owner + [0] * missing, device=device)
        scalings = torch.tensor(scaling + [0.0] * missing, device=device, dtype=exact)
        self.register_buffer("owner", owners, persistent=False)
        self.register_buffer("scaling", scalings, persistent=False)

    def forward(self, alpha: Float[Tensor, "rows skills"]) -> Float[Tensor, "rows all_ranks"]:
        """The weights of the ranks."""
        return alpha.index_select(1, self.owner) * self.scaling

    def spans(self) -> list[slice]:
        """Where each skill's ranks lie."""
        ends = itertools.accumulate(self.ranks)
        return [slice(end - rank, end) for end, rank in zip(ends, self.ranks, strict=True)]


class JoinedSkills(Parts):
    """K low-rank maps `s_i B_i A_i` of any ranks: `lora_A [R, in]`, `lora_B [out, R]`, R the sum of the ranks.

    Args:
        factors: of each skill; copied.
        trainable: whether they learn.
    """

    def __init__(self, factors: Sequence[Factors], trainable: bool) -> None:
        super().__init__()
        self.num_parts = len(factors)
        self.in_features, self.out_features = factors[0].in_features, factors[0].out_features
        self.rank_weights = RankWeights(factors)
        self.layout = repr((self.rank_weights.ranks, self.rank_weights.scalings))
        self.lora_A = nn.Parameter(torch.cat([f.A.detach() for f in factors]), requires_grad=trainable)
        self.lora_B = nn.Parameter(torch.cat([f.B.detach() for f in factors], dim=1), requires_grad=trainable)

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self._parameters["lora_A"].dtype  # type: ignore[union-attr]

    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """One skill's map."""
        span = self.rank_weights.spans()[part]
        low = F.linear(x, self.lora_A[span]) * self.rank_weights.scalings[part]
        return F.linear(low, self.lora_B[:, span])

    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products; ranks that differ are filled up for them."""
        down, up = self._stacks()
        low = grouped_linear(rows, down, offsets)
        sizes = offsets.diff(prepend=offsets.new_zeros(1))
        scalings = low.new_tensor(self.rank_weights.scalings)
        scalings = scalings.repeat_interleave(sizes, output_size=low.shape[0])
        return grouped_linear(low * scalings[:, None], up, offsets)

    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """A joined, weights, B joined: one product of rank R for the whole sum."""
        return F.linear(F.linear(x, self.lora_A) * self.weigh(gates), self.lora_B)

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`; the sum is made inside the second product."""
        return self.onto(y, x, self.weigh(gates))

    def weigh(self, gates: Float[Tensor, "tokens parts"]) -> Float[Tensor, "tokens all_ranks"]:
        """The weights of the ranks, in the dtype of the factors; one result serves every layer that is alike."""
        return self.rank_weights(gates).to(self.lora_A.dtype)  # type: ignore[no-any-return]
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
        down, up = self._parameters["lora_A"], self._parameters["lora_B"]
        low = F.linear(x, down) * weights
        if low.dtype != y.dtype or low.dtype != up.dtype:
            # Autocast computes products in a dtype of its own.
            return y + F.linear(low, up).to(y.dtype)
        return (y.addmm_ if in_place else y.addmm)(low, up.t())

    def is_dense_for(self, routes: Routes) -> bool:
        """See `Parts`."""
        return not is_sparse_enough(routes, self.lora_A.shape[0])

    def _stacks(self) -> tuple[Tensor, Tensor]:
        """A `[K, r, in]` and B `[K, out, r]`."""
        ranks = self.rank_weights.ranks
        if len(set(ranks)) == 1:
            down = self.lora_A.view(self.num_parts, ranks[0], self.in_features)
            up = self.lora_B.view(self.out_features, self.num_parts, ranks[0])
            return down, up.transpose(0, 1).contiguous()
        most = max(ranks)
        spans = self.rank_weights.spans()
        down = torch.stack([F.pad(self.lora_A[s], (0, 0, 0, most - r)) for s, r in zip(spans, ranks, strict=True)])
        up = torch.stack([F.pad(self.lora_B[:, s], (0, most - r)) for s, r in zip(spans, ranks, strict=True)])
        return down, up

    def factors(self, embedding: bool = False) -> Iterator[Factors]:
        """Of each skill; views, so writing to them shows here."""
        scalings = self.rank_weights.scalings
        for span, scaling in zip(self.rank_weights.spans(), scalings, strict=True):
            yield Factors(
                A=self.lora_A[span], B=self.lora_B[:, span], scaling=scaling, embedding=embedding
            )

    def reset_parameters(self) -> None:
        """Nothing is drawn anew: a skill's factors are its own."""

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        ranks = list(self.rank_weights.ranks)
        return f"ranks={ranks}, in_features={self.in_features}, out_features={self.out_features}"
