"""Low-rank parts: LoRA skills, or the smallest possible experts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.grouped_linear import grouped_linear, missing_columns
from expertise.mixture.parts.base import Parts
from expertise.mixture.parts.configs import LowRankExpertsConfig
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int

_MOVING = 96
"""What it costs to bring a token to a part and its output back, in ranks: it takes as long as so many more
ranks would. Measured, forward and backward: 45 to 75 for tokens that fit the cache, to 180 for others."""


class LowRankExperts(Parts):
    """K low-rank maps `scaling_i * B_i A_i` (LoRA, arXiv 2106.09685; PSEC, arXiv 2502.05932).

    One rank for all parts gives parameters `lora_A [K, r, in]` and `lora_B [K, out, r]`. Parts of any ranks
    are joined along the rank, R the sum of ranks, so that each costs its own rank and no more:
    `lora_A [R, in]`, `lora_B [R, out]`; beside a stack of E expert weights `lora_A [E, R, in]`,
    `lora_B [E, out, R]`. The B of joined parts is stored the other way round, because a product with a single
    row, as in acting, is faster so.

    The sum over parts is one product of rank R. `weigh` makes the weights of the ranks ready, which many
    layers can share, and `onto` adds the sum to an output.

    A new part does nothing: B starts at zero.

    Args:
        num_parts: K.
        in_features: width in.
        out_features: width out.
        rank: r.
    """

    Config = LowRankExpertsConfig

    scaling: Tensor
    """Multiplier of each part `[K]`, at least float32."""
    owner: Tensor
    """Number of the part that each rank belongs to `[R]`, int64."""

    def __init__(self, num_parts: int, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        LowRankExperts.Config(num_parts=num_parts, rank=rank)
        self._describe((rank,) * num_parts, in_features, out_features, None)
        self.lora_A = nn.Parameter(torch.empty(num_parts, rank, in_features))
        self.lora_B = nn.Parameter(torch.empty(num_parts, out_features, rank))
        self.register_buffer("scaling", torch.ones(num_parts))
        self.reset_parameters()

    @classmethod
    def joined(
        cls,
        factors: Sequence[tuple[Tensor, Tensor]],
        scalings: Sequence[float],
        trainable: bool = False,
    ) -> LowRankExperts:
        """Parts of any ranks with these factors, which are copied.

        Args:
            factors: A `[r, in]` and B `[out, r]` of each part; with a leading E beside a stack of experts.
            scalings: multiplier of each part.
            trainable: whether the factors learn.
        """
        made = cls.__new__(cls)
        Parts.__init__(made)
        first, last = factors[0]
        num_experts = first.shape[0] if first.ndim == 3 else None
        ranks = tuple(down.shape[-2] for down, _ in factors)
        made._describe(ranks, first.shape[-1], last.shape[-2], num_experts, first.dtype, first.device)
        down = torch.cat([down.detach() for down, _ in factors], dim=-2)
        if num_experts is None:
            up = torch.cat([up.detach().t() for _, up in factors])
        else:
            # Whole strides for the grouped product; the ranks behind the last part stay zero.
            down = F.pad(down, (0, 0, 0, made._padding))
            up = F.pad(torch.cat([up.detach() for _, up in factors], dim=-1), (0, made._padding))
        made.lora_A = nn.Parameter(down, requires_grad=trainable)
        made.lora_B = nn.Parameter(up, requires_grad=trainable)
        exact = torch.promote_types(first.dtype, torch.float32)
        scaling = torch.tensor(scalings, device=first.device, dtype=exact)
        made.register_buffer("scaling", scaling, persistent=False)
        made.scalings = tuple(scalings)
        made.layout = repr((ranks, made.scalings))
        return made

    def _describe(
        self,
        ranks: tuple[int, ...],
        in_features: int,
        out_features: int,
        num_experts: int | None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.num_parts, self.ranks, self.num_experts = len(ranks), ranks, num_experts
        self.in_features, self.out_features = in_features, out_features
        self._padding = 0 if num_experts is None else missing_columns(sum(ranks), dtype)
        owner = [part for part, rank in enumerate(ranks) for _ in range(rank)] + [0] * self._padding
        self.register_buffer("owner", torch.tensor(owner, device=device), persistent=False)
        self.scalings: tuple[float, ...] = (1.0,) * len(ranks)
        """The multipliers that joined parts were made with."""
        self.layout = ""
        """Equal for joined parts whose weights of ranks are the same for equal gates."""

    @property
    def is_joined(self) -> bool:
        """Whether the factors of all parts lie side by side, in parameters of two dimensions."""
        return self._parameters["lora_A"].ndim == 2  # type: ignore[union-attr]

    def reset_parameters(self) -> None:
        """A normal with std 1 / sqrt(in), B zero."""
        nn.init.normal_(self.lora_A, std=self.in_features**-0.5)
        nn.init.zeros_(self.lora_B)

    def spans(self) -> list[slice]:
        """Where each part's ranks lie among the R."""
        return [
            slice(end - rank, end)
            for end, rank in zip(itertools.accumulate(self.ranks), self.ranks, strict=True)
        ]

    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """Part `part` applied to tokens."""
        span = self.spans()[part]
        low = F.linear(x, self._down()[span])
        return (low * self.scaling[part].to(low.dtype)) @ self._up()[span]

    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Two grouped products, the scaling between them, where rows are narrowest."""
        down, up = self._stacks()
        low = grouped_linear(rows, down, offsets)
        sizes = offsets.diff(prepend=offsets.new_zeros(1))
        scaling = self.scaling.to(low.dtype).repeat_interleave(sizes, output_size=low.shape[0])
        return grouped_linear(low * scaling[:, None], up, offsets)

    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """A joined, weighted, B joined: one product of rank R for the whole sum."""
        return (F.linear(x, self._down()) * self.weigh(gates)) @ self._up()

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`; the sum is made inside the second product."""
        return self.onto(y, x, self.weigh(gates))

    def weigh(self, gates: Float[Tensor, "tokens parts"]) -> Float[Tensor, "tokens all_ranks"]:
        """Weights of the ranks, scaling included, in the factors' dtype; layers that are alike share them."""
        return (gates * self.scaling).index_select(1, self.owner).to(self.lora_A.dtype)

    def onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        weights: Float[Tensor, "tokens_or_one all_ranks"],
        offsets: Int[Tensor, " experts"] | None = None,
        in_place: bool = False,
    ) -> Float[Tensor, "tokens out_features"]:
        """`y` plus the sum over parts.

        Args:
            y: what the sum is added to.
            x: tokens; sorted by expert beside a stack of experts.
            weights: from `weigh`; one row counts for every token.
            offsets: where each expert's tokens end (int32), beside a stack of experts.
            in_place: write the sum into y, if its dtype allows that.
        """
        # The tables of the module, because its attributes are slow to find, and small models feel it.
        own: dict[str, Any] = self._parameters
        if offsets is not None:
            low: Tensor = grouped_linear(x, own["lora_A"], offsets) * weights
            added: Tensor = grouped_linear(low, own["lora_B"], offsets)
            return y.add_(added) if in_place else y + added
        down, up = own["lora_A"], own["lora_B"]
        if down.ndim == 3:
            down, up = self._down(), self._up()
        low = F.linear(x, down) * weights
        if low.dtype != y.dtype or low.dtype != up.dtype:
            # Autocast computes products in a dtype of its own.
            added = low @ up
            return y + added.to(y.dtype)
        return y.addmm_(low, up) if in_place else y.addmm(low, up)

    def of_expert(
        self,
        expert: int,
        x: Float[Tensor, "tokens in_features"],
        weights: Float[Tensor, "tokens_or_one all_ranks"],
    ) -> Float[Tensor, "tokens out_features"]:
        """The sum over parts beside one expert of a stack; `weights` from `weigh`."""
        return F.linear(F.linear(x, self.lora_A[expert]) * weights, self.lora_B[expert])

    def fixed(self, weights: Float[Tensor, "tokens_or_one all_ranks"]) -> FixedSum:
        """The sum over joined parts for weights that many calls share, without gradients."""
        down, up = self.lora_A.detach(), self.lora_B.detach()
        if weights.shape[0] == 1:
            return FixedSum(down, up * weights[0].unsqueeze(1), None)
        return FixedSum(down, up, weights)

    def is_dense_for(self, routes: Routes) -> bool:
        """Few parts are computed for every token, whatever was chosen."""
        if routes.is_dense:
            return True
        taken, all_ranks = float(routes.num_slots), sum(self.ranks)
        if routes.counts is not None and routes.counts.device.type == "cpu":
            # Elsewhere this would wait for the device.
            taken = float(routes.counts.sum()) / max(1, routes.num_tokens)
        return taken * (all_ranks / routes.num_parts + _MOVING) >= all_ranks

    def _down(self) -> Float[Tensor, "all_ranks in_features"]:
        return self.lora_A if self.is_joined else self.lora_A.flatten(0, 1)

    def _up(self) -> Float[Tensor, "all_ranks out_features"]:
        return self.lora_B if self.is_joined else self.lora_B.transpose(1, 2).flatten(0, 1)

    def _stacks(self) -> tuple[Float[Tensor, "parts r in_features"], Float[Tensor, "parts out_features r"]]:
        """A and B of the parts, filled up with zeros where ranks differ."""
        if not self.is_joined:
            return self.lora_A, self.lora_B
        most = max(self.ranks)
        if min(self.ranks) == most:
            down, up = (joined.view(self.num_parts, most, -1) for joined in (self.lora_A, self.lora_B))
        else:
            down, up = (
                torch.stack([F.pad(joined[s], (0, 0, 0, most - s.stop + s.start)) for s in self.spans()])
                for joined in (self.lora_A, self.lora_B)
            )
        # The grouped product wants B whole, and the other way round than it is joined.
        return down, up.transpose(1, 2).contiguous()

    def extra_repr(self) -> str:
        """Numbers and widths for printing."""
        ranks = sorted(set(self.ranks))
        shown = f"rank={ranks[0]}" if len(ranks) == 1 else f"ranks={list(self.ranks)}"
        return (
            f"num_parts={self.num_parts}, in_features={self.in_features}, "
            f"out_features={self.out_features}, {shown}"
        )


class FixedSum:
    """A sum over low-rank parts whose weights are set, for calls that should cost little beside two products.

    Args:
        down: joined A `[R, in]`.
        up: joined B `[R, out]`; the weights are worked in if they are the same for all rows.
        weights: of each row's ranks; None: they are worked into B.
    """

    def __init__(self, down: Tensor, up: Tensor, weights: Tensor | None) -> None:
        self._down, self._up, self._weights = down, up, weights

    def onto(
        self, y: Float[Tensor, "rows out_features"], x: Float[Tensor, "rows in_features"]
    ) -> Float[Tensor, "rows out_features"]:
        """Add the sum to y, in place."""
        low = F.linear(x, self._down)
        return y.addmm_(low if self._weights is None else low * self._weights, self._up)
