"""Batches of a token stream, a function of seed and step alone: going on from any step needs no state."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expertise.errors import DataError, counted
from expertise.lm.data.streams import TokenStream
from expertise.shapes import Int

IGNORED = -100
"""The target of what is not learnt, which `torch.nn.functional.cross_entropy` leaves out by default."""

PADDING = -1
"""The document and the domain of a token that only fills a window."""


@dataclass(frozen=True)
class Batch:
    """What a model sees in one step; all int64."""

    tokens: Int[Tensor, "batch time"]
    """Ids that go in."""

    targets: Int[Tensor, "batch time"]
    """The id that follows each of them, or `IGNORED` where it is not learnt."""

    domains: Int[Tensor, "batch time"]
    """The domain id of each token that goes in; an end of text belongs to the document it precedes."""

    documents: Int[Tensor, "batch time"] | None = None
    """The number of each token's document in its window, or `PADDING`; None: attention crosses documents."""

    def num_targets(self) -> int:
        """How many targets are learnt."""
        return int((self.targets != IGNORED).sum())

    def row(self, index: int) -> Batch:
        """One row of it as a batch."""
        kept = slice(index, index + 1)
        documents = None if self.documents is None else self.documents[kept]
        return Batch(self.tokens[kept], self.targets[kept], self.domains[kept], documents)


@dataclass(frozen=True)
class ContextKeys:
    """What sets the context, for advice where there is too little text; empty: nothing can."""

    lower: str = "model.context"
    higher: str = "model.context"


CONTEXT_KEYS = ContextKeys()


class Windows(abc.ABC):
    """Windows in random order, each once per epoch.

    Each epoch has its own permutation of them; batches run on from one epoch into the next.

    Args:
        num_windows: how many there are.
        batch_size: sequences per batch.
        seed: of the permutations, 0 or more.
    """

    def __init__(self, num_windows: int, batch_size: int, seed: int) -> None:
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self._orders: dict[int, Int[np.ndarray, " windows"]] = {}

    def batch(self, index: int) -> Batch:
        """The batch of this index, 0 or more: the same whatever was asked before."""
        drawn = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        windows = [self._order(int(i // self.num_windows))[i % self.num_windows] for i in drawn]
        return self.read(np.array(windows))

    @abc.abstractmethod
    def read(self, windows: Int[np.ndarray, " batch"]) -> Batch:
        """These windows, in this order."""

    def notes(self) -> list[str]:
        """What a user may want to know about how documents fit the windows: one line each."""
        return []

    def _order(self, epoch: int) -> Int[np.ndarray, " windows"]:
        """The epoch's permutation; the latest two are kept, because a batch may lie in both."""
        if epoch not in self._orders:
            if len(self._orders) > 1:
                del self._orders[min(self._orders)]
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.num_windows)
        return self._orders[epoch]


class Batches(Windows):
    """Windows of a stream, with attention across documents.

    Windows hold `context` + 1 tokens and start every `context` tokens, so each token but the first is a
    target once.

    Args:
        stream: the tokens.
        context: tokens per sequence.
        batch_size: sequences per batch.
        seed: of the permutations, 0 or more.
        keys: what sets `context`, for the error.

    Raises:
        DataError: the stream is shorter than one batch.
    """

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        batch_size: int,
        seed: int,
        keys: ContextKeys = CONTEXT_KEYS,
    ) -> None:
        have, needed = len(stream.tokens), batch_size * context + 1
        if have < needed:
            raise DataError(
                f"the training text has {counted(have, 'token')}, but one batch needs {needed:,}",
                smaller(max(0, have - 1) // context, batch_size, context, keys.lower, "add text")
                if have
                else OTHER_TOKENIZER,
            )
        super().__init__((have - 1) // context, batch_size, seed)
        self.stream, self.context = stream, context

    def notes(self) -> list[str]:
        """How many tokens at the end fill no window, and are never seen."""
        total = len(self.stream.tokens)
        left = total - 1 - self.num_windows * self.context
        if not left:
            return []
        return [
            f"left out: the last {left:,} of {counted(total, 'training token')}, "
            f"which fill no window of {self.context}"
        ]

    def read(self, windows: Int[np.ndarray, " batch"]) -> Batch:
        """These windows, in this order."""
        positions = windows[:, None] * self.context + np.arange(self.context + 1)
        ids = torch.from_numpy(self.stream.tokens[positions].astype(np.int64))
        domains = torch.from_numpy(self.stream.domain_of(positions[:, :-1]))
        # A copy: with one row `contiguous` would give a view, and the marks below would go into the inputs.
        targets = ids[:, 1:].clone()
        if self.stream.learnt is not None:
            targets[~torch.from_numpy(self.stream.learnt[positions[:, 1:]])] = IGNORED
        return Batch(ids[:, :-1].contiguous(), targets, domains)


OTHER_TOKENIZER = "take a tokenizer that has tokens for this text, such as one that is trained on it"
"""A hint for text of which nothing is left."""


def smaller(windows: int, batch_size: int, context: int, context_key: str, more: str) -> str:
    """A hint for too little training text: what can be made smaller, as far as that helps, or what to add.

    Args:
        windows: how many windows the text fills.
        batch_size: how many are wanted.
        context: tokens of a window.
        context_key: what sets that; empty: it cannot be changed.
        more: what to do else, in words.
    """
    ways = [f"lower train.batch_size ({batch_size}) to {windows} or less"] if windows else []
    if context_key and context > 1:
        ways.append(f"{'' if ways else 'lower '}{context_key} ({context})")
    return ", or ".join([*ways, more])
