"""Feed-forward experts: SwiGLU, single (always on) and stacked (routed)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from expertise.mixture.grouped_linear import grouped_linear
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.configs import SwiGLUConfig, SwiGLUExpertsConfig
from expertise.shapes import Float, Int


def gated_silu(gate_up: Float[Tensor, "*leading both"]) -> Float[Tensor, "*leading hidden"]:
    """`silu(gate) * up` of a tensor that holds both side by side, gate first."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` without biases (arXiv 2002.05202).

    K_s shared experts of width F are one SwiGLU of width K_s * F: a gated network is a sum over its hidden
    units, so the merged one equals their sum (as in DeepSeekMoE's released code).

    Args:
        dim: width in and out.
        hidden: hidden width.
    """

    Config = SwiGLUConfig

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*leading dim"]) -> Float[Tensor, "*leading dim"]:
        """Apply the network to the last dimension."""
        return self.down(gated_silu(self.gate_up(x)))  # type: ignore[no-any-return]


class SwiGLUExperts(Parts):
    """E SwiGLU experts in two stacks: `gate_up [E, 2 * hidden, dim]` (gate first), `down [E, dim, hidden]`.

    Args:
        num_parts: E.
        dim: width in and out.
        hidden: hidden width of each expert.
    """

    Config = SwiGLUExpertsConfig

    def __init__(self, num_parts: int, dim: int, hidden: int) -> None:
        super().__init__()
        SwiGLUExperts.Config(num_parts=num_parts, hidden=hidden)
        self.num_parts = num_parts
        self.in_features = self.out_features = dim
        self.hidden = hidden
        self.gate_up = nn.Parameter(torch.empty(num_parts, 2 * hidden, dim))
        self.down = nn.Parameter(torch.empty(num_parts, dim, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw normal weights of std 1 / sqrt(fan-in)."""
        for weight in (self.gate_up, self.down):
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    @override
    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        return F.linear(gated_silu(F.linear(x, self.gate_up[part])), self.down[part])

    @override
    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        return grouped_linear(gated_silu(grouped_linear(rows, self.gate_up, offsets)), self.down, offsets)

    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Compute all experts as one wide SwiGLU whose hidden units are weighted by their expert's gate."""
        gate_up = F.linear(x, self.gate_up.flatten(0, 1)).view(-1, self.num_parts, 2 * self.hidden)
        hidden = gated_silu(gate_up)
        hidden = hidden * gates.to(hidden.dtype).unsqueeze(-1)
        return F.linear(hidden.flatten(1), self.down.transpose(0, 1).flatten(1))

    @override
    def extra_repr(self) -> str:
        return f"num_parts={self.num_parts}, dim={self.in_features}, hidden={self.hidden}"
