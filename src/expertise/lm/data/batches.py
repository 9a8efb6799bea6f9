"""Batches of a token stream, a function of seed and step alone: going on from any step needs no state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expertise.errors import DataError
from expertise.lm.data.streams import TokenStream
from expertise.shapes import Int


@dataclass(frozen=True)
class Batch:
    """What a model sees in one step; all int64."""

    tokens: Int[Tensor, "batch time"]
    """Ids that go in."""

    targets: Int[Tensor, "batch time"]
    """The id that follows each of them."""

    domains: Int[Tensor, "batch time"]
    """The domain id of each token that goes in; an end of text belongs to the document it precedes."""


class Batches:
    """Windows of a stream in random order, each once per epoch.

    Windows hold `context` + 1 tokens and start every `context` tokens, so each token but the first is a
    target once. Each epoch has its own permutation of them; batches run on from one epoch into the next.

    Args:
        stream: the tokens.
        context: tokens per sequence.
        batch_size: sequences per batch.
        seed: of the permutations, 0 or more.

    Raises:
        DataError: the stream is shorter than one batch.
    """

    def __init__(self, stream: TokenStream, context: int, batch_size: int, seed: int) -> None:
        self.stream, self.context, self.batch_size, self.seed = stream, context, batch_size, seed
        have, needed = len(stream.tokens), batch_size * context + 1
        if have < needed:
            raise DataError(
                f"the training text has {have:,} tokens, but one batch needs {needed:,}",
                f"lower train.batch_size ({batch_size}) or model.context ({context}), or add text",
            )
        self.num_windows = (have - 1) // context
        self._orders: dict[int, Int[np.ndarray, " windows"]] = {}

    def batch(self, index: int) -> Batch:
        """The batch of this index, 0 or more: the same whatever was asked before."""
        drawn = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        windows = np.array([self._order(int(i // self.num_windows))[i % self.num_windows] for i in drawn])
        positions = windows[:, None] * self.context + np.arange(self.context + 1)
        ids = torch.from_numpy(self.stream.tokens[positions].astype(np.int64))
        domains = torch.from_numpy(self.stream.domain_of(positions[:, :-1]))
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), domains)

    def _order(self, epoch: int) -> Int[np.ndarray, " windows"]:
        """The epoch's permutation; the latest two are kept, because a batch may lie in both."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)
        return self._orders[epoch]
