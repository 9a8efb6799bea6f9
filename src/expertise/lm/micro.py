"""A step's micro-batches, and what their losses are divided by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from expertise.lm.data import PADDING, Batch, ContextKeys, Prepared
from expertise.runs.config import TrainConfig


@dataclass(frozen=True)
class StepCounts:
    """What the sums of a micro-batch's losses are divided by: a step's counts, an equal share for each.

    Micro-batches may hold more and fewer targets, tokens and sequences that count. When each divides its sums
    by the same share, the mean over the micro-batches is the mean over the whole step.
    """

    targets: float
    """Targets that are learnt."""
    tokens: float
    """Tokens that are no padding."""
    sequences: float
    """Sequences that hold such a token."""

    @classmethod
    def of(cls, batches: list[Batch]) -> StepCounts:
        """The share of each of a step's micro-batches; at least one of everything in the step."""
        targets = tokens = sequences = 0
        for batch in batches:
            targets += batch.num_targets()
            documents = batch.documents
            counted = torch.ones_like(batch.tokens) > 0 if documents is None else documents != PADDING
            tokens += int(counted.sum())
            sequences += int(counted.any(1).sum())
        return cls(*(max(1, number) / len(batches) for number in (targets, tokens, sequences)))


class MicroBatches:
    """Batches of training text, cut as a training says: a function of text, seed and step alone.

    Args:
        prepared: the text.
        context: tokens per window.
        train: batch size, accumulation and seed.
        keys: what sets the context, for the error.

    Raises:
        DataError: there is too little text for one batch.
    """

    def __init__(
        self, prepared: Prepared, context: int, train: TrainConfig, keys: ContextKeys | None = None
    ) -> None:
        self._prepared, self._accumulation = prepared, train.accumulation
        # Also refuses too little text, by the recipe's key.
        self.notes = prepared.batches(context, train.batch_size, train.seed, keys or ContextKeys()).notes()
        self._micro = prepared.batches(context, train.batch_size // train.accumulation, train.seed)
        self._counts: tuple[int, StepCounts | None] = (-1, None)

    def batch(self, step: int, micro: int) -> Batch:
        """One micro-batch; those of a step are consecutive rows of its batch."""
        return self._micro.batch(step * self._accumulation + micro)

    def rows(self) -> Iterator[tuple[int, int, Batch]]:
        """The rows of an epoch in the order of training: the step, the place in it (both from 0), the row."""
        size = self._micro.batch_size
        for number in itertools.count():
            batch = self._micro.batch(number)
            for row in range(size):
                if number * size + row == self._micro.num_windows:
                    return
                step, micro = divmod(number, self._accumulation)
                yield step, micro * size + row, batch.row(row)

    def epochs(self, steps: int) -> float:
        """How often so many steps go through all windows."""
        return steps * self._accumulation * self._micro.batch_size / self._micro.num_windows

    def counts(self, step: int) -> StepCounts | None:
        """What a step's losses are divided by; None where every token counts and is a target."""
        if not self._prepared.some_ignored:
            return None
        if self._counts[0] != step:
            batches = [self.batch(step, micro) for micro in range(self._accumulation)]
            self._counts = step, StepCounts.of(batches)
        return self._counts[1]
