"""A step's micro-batches, and the counts that their losses are divided by."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from expertise.lm.data import PADDING, Batch, ContextKeys, Prepared
from expertise.runs.config import TrainConfig


@dataclass(frozen=True)
class StepCounts:
    """Divisors of a micro-batch's summed losses: the step's counts divided by its number of micro-batches.

    Micro-batches may hold more and fewer targets, tokens and sequences that count. When each divides its sums
    by the same share, the mean over the micro-batches is the mean over the whole step.
    """

    targets: float
    """Targets that count in the loss."""
    tokens: float
    """Tokens without padding."""
    sequences: float
    """Sequences with at least one token that is not padding."""

    @classmethod
    def of(cls, batches: list[Batch]) -> StepCounts:
        """Return the share of each of a step's micro-batches; at least one of everything in the step."""
        targets = tokens = sequences = 0
        for batch in batches:
            targets += batch.num_targets()
            documents = batch.documents
            counted = torch.ones_like(batch.tokens) > 0 if documents is None else documents != PADDING
            tokens += int(counted.sum())
            sequences += int(counted.any(1).sum())
        return cls(*(max(1, number) / len(batches) for number in (targets, tokens, sequences)))


class MicroBatches:
    """Micro-batches of training text; each depends on text, seed and step only.

    Args:
        prepared: the encoded text.
        context: tokens per window.
        train: batch size, accumulation and seed.
        keys: names of the recipe keys that set the context, for the error.

    Raises:
        DataError: there is too little text for one batch.
    """

    def __init__(
        self, prepared: Prepared, context: int, train: TrainConfig, keys: ContextKeys | None = None
    ) -> None:
        self._prepared, self._accumulation = prepared, train.accumulation
        # This also refuses too little text, and names the recipe's key.
        self.notes = prepared.batches(context, train.batch_size, train.seed, keys or ContextKeys()).notes()
        self._micro = prepared.batches(context, train.batch_size // train.accumulation, train.seed)
        self._counts: tuple[int, StepCounts | None] = (-1, None)

    def batch(self, step: int, micro: int) -> Batch:
        """Return one micro-batch; those of a step are consecutive rows of its batch."""
        return self._micro.batch(step * self._accumulation + micro)

    def rows(self) -> Iterator[tuple[int, int, Batch]]:
        """Yield the rows of an epoch in training order: step, place in the step (both from 0), row."""
        size = self._micro.batch_size
        for number in itertools.count():
            batch = self._micro.batch(number)
            for row in range(size):
                if number * size + row == self._micro.num_windows:
                    return
                step, micro = divmod(number, self._accumulation)
                yield step, micro * size + row, batch.row(row)

    def epochs(self, steps: int) -> float:
        """Return the number of epochs that `steps` steps make."""
        return steps * self._accumulation * self._micro.batch_size / self._micro.num_windows

    def counts(self, step: int) -> StepCounts | None:
        """Return the divisors of a step's losses; None where every token counts and is a target."""
        if not self._prepared.some_ignored:
            return None
        if self._counts[0] != step:
            batches = [self.batch(step, micro) for micro in range(self._accumulation)]
            self._counts = step, StepCounts.of(batches)
        return self._counts[1]
