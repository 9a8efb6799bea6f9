"""Hash routing: one fixed part per token id, nothing learned."""

from __future__ import annotations

import heapq
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import HashConfig
from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


class Hash(Router):
    """One random part per token id, drawn once, gate 1 (Hash Layers, arXiv 2106.04426; DeepSeekMoE §4.1.3).

    `context` must hold the token ids. Affinities are 1 for the part and 0 for the others. The draw depends on
    the seed alone, so the layers of one model group the token ids alike.

    Args:
        num_parts: E.
        vocab_size: number of token ids.
        seed: seed of the draw.

    Raises:
        RecipeError: there is no part or no token.
    """

    Config = HashConfig

    context_kind = HashConfig.context_kind
    table: Tensor

    def __init__(self, num_parts: int, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        if num_parts < 1 or vocab_size < 1:
            raise RecipeError(f"a hash router needs parts and token ids, not {num_parts} and {vocab_size}")
        self.num_parts = num_parts
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("table", torch.randint(num_parts, (vocab_size,), generator=generator))

    def balance(self, frequencies: Int[Tensor, " vocab"]) -> None:
        """Assign token ids, most frequent first, each to the part with the fewest tokens so far.

        Replaces the random draw: the result depends on the frequencies alone; ties go by the lower id.

        Args:
            frequencies: number of times that each id occurs in the training text.

        Raises:
            RecipeError: there is not one frequency per token id.
        """
        if len(frequencies) != len(self.table):
            raise RecipeError(f"{len(frequencies)} frequencies for {len(self.table)} token ids")
        heap = [(0, part) for part in range(self.num_parts)]
        order = torch.sort(frequencies, descending=True, stable=True).indices.tolist()
        counts = frequencies.tolist()
        for token in order:
            load, part = heapq.heappop(heap)
            self.table[token] = part
            # A token that never occurs counts 1; otherwise all such tokens would go to one part.
            heapq.heappush(heap, (load + max(1, counts[token]), part))

    def forward(self, x: Float[Tensor, "*leading dim"], context: Any = None) -> Routes:
        """Look up one part for each token of x by its id in `context` (int64, x's leading shape).

        Raises:
            RecipeError: there are no token ids, or not one per token.
        """
        if not isinstance(context, Tensor) or context.is_floating_point() or context.shape != x.shape[:-1]:
            raise RecipeError("a hash router needs the token ids as context, one per token")
        part_ids = self.table[context.reshape(-1)][:, None]
        affinities = x.new_zeros(part_ids.shape[0], self.num_parts).scatter(1, part_ids, 1.0)
        return Routes(gates=affinities.gather(1, part_ids), affinities=affinities, part_ids=part_ids)

    @override
    def extra_repr(self) -> str:
        return f"num_parts={self.num_parts}, vocab_size={len(self.table)}"
