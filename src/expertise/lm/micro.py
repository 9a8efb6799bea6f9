"""A step's micro-batches, and what their losses are divided by."""

from __future__ import annotations

from expertise.lm.data import Batch, ContextKeys, Prepared
from expertise.runs.config import TrainConfig


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
        self._targets: tuple[int, float | None] = (-1, None)

    def batch(self, step: int, micro: int) -> Batch:
        """One micro-batch; those of a step are consecutive rows of its batch."""
        return self._micro.batch(step * self._accumulation + micro)

    def num_targets(self, step: int) -> float | None:
        """Targets of a step per micro-batch, at least 1; None where every token is one."""
        if not self._prepared.some_ignored:
            return None
        if self._targets[0] != step:
            batches = (self.batch(step, micro) for micro in range(self._accumulation))
            number = max(1, sum(batch.num_targets() for batch in batches)) / self._accumulation
            self._targets = step, number
        return self._targets[1]
