"""Low-rank parts: LoRA skills, or the smallest possible experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.grouped_linear import grouped_linear
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.configs import LowRankExpertsConfig
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int

_MOVING = 96
"""What it costs to bring a token to a part and its output back, in ranks: it takes as long as so many more
ranks would. Measured, forward and backward: 45 to 75 for tokens that fit the cache, to 180 for others."""


def is_sparse_enough(routes: Routes, all_ranks: int) -> bool:
    """Whether bringing tokens to their parts is faster for these routes than all parts for all tokens.

    Args:
        routes: who takes what.
        all_ranks: ranks of all parts together.
    """
    if routes.is_dense:
        return False
    taken = float(routes.num_slots)
    if routes.counts is not None and routes.counts.device.type == "cpu":
        # Elsewhere this would wait for the device.
        taken = float(routes.counts.sum()) / max(1, routes.num_tokens)
    return taken * (all_ranks / routes.num_parts + _MOVING) < all_ranks


class LowRankExperts(Parts):
    """K low-rank maps `scaling_i * B_i A_i` (LoRA, arXiv 2106.09685; PSEC, arXiv 2502.05932).

    Parameters `lora_A [K, r, in]` and `lora_B [K, out, r]`; buffer `scaling [K]`. A new part does nothing:
    B starts at zero.

    Args:
        num_parts: K.
        in_features: width in.
        out_features: width out.
        rank: r.
    """

    Config = LowRankExpertsConfig

    scaling: Tensor

    def __init__(self, num_parts: int, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        LowRankExperts.Config(num_parts=num_parts, rank=rank)
        self.num_parts = num_parts
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.lora_A = nn.Parameter(torch.empty(num_parts, rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(num_parts, out_features, rank))
        self.register_buffer("scaling", torch.ones(num_parts))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A normal with std 1 / sqrt(in), B zero."""
        nn.init.normal_(self.lora_A, std=self.in_features**-0.5)
        nn.init.zeros_(self.lora_B)

    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """Part `part` applied to tokens."""
        low = F.linear(x, self.lora_A[part])
        return F.linear(low * self.scaling[part].to(low.dtype), self.lora_B[part])

    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products, the scaling between them, where rows are narrowest."""
        low = grouped_linear(rows, self.lora_A, offsets)
        sizes = offsets.diff(prepend=offsets.new_zeros(1))
        scaling = self.scaling.to(low.dtype).repeat_interleave(sizes, output_size=low.shape[0])
        return grouped_linear(low * scaling[:, None], self.lora_B, offsets)

    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """A concatenated, scaled, B concatenated: one product of rank K * r for the whole sum."""
        return F.linear(self.scaled(F.linear(x, self.lora_A.flatten(0, 1)), gates), self.joined_B())

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`; the sum is made inside the second product."""
        low = self.scaled(F.linear(x, self.lora_A.flatten(0, 1)), gates)
        return torch.addmm(y, low, self.joined_B().t())

    def is_dense_for(self, routes: Routes) -> bool:
        """See `Parts`: few parts are computed for every token, whatever was chosen."""
        return not is_sparse_enough(routes, self.num_parts * self.rank)

    def scaled(
        self, low: Float[Tensor, "tokens all_ranks"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens all_ranks"]:
        """The tokens' low-rank coordinates in all parts, each times gate and scaling."""
        weights = (gates * self.scaling).to(low.dtype)
        if self.num_parts == 1:
            return low * weights
        return (low.view(-1, self.num_parts, self.rank) * weights.unsqueeze(-1)).flatten(1)

    def joined_B(self) -> Float[Tensor, "out_features all_ranks"]:  # noqa: N802 - the field's name
        """B of all parts side by side."""
        return self.lora_B.transpose(0, 1).flatten(1)

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return (
            f"num_parts={self.num_parts}, in_features={self.in_features}, "
            f"out_features={self.out_features}, rank={self.rank}"
        )
