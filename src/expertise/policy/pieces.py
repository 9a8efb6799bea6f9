"""Dropout that is the same for a whole batch and for its pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from typing_extensions import override


class Dropout(nn.Dropout):
    """Dropout that gives the rows of a piece of a batch the same mask as in the whole batch.

    `piece_of` sets the piece. The layer then draws for the whole batch and uses the piece's rows, so
    every piece must begin with the same random state. For a whole batch it is `nn.Dropout`.
    """

    piece = (0, 1)
    """Index of the piece, and number of equal pieces of the batch."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        index, number = self.piece
        if number == 1 or not self.training:
            return super().forward(x)
        whole = super().forward(x.new_ones(number * x.shape[0], *x.shape[1:]))
        return x * whole.chunk(number)[index]


@contextlib.contextmanager
def piece_of(model: nn.Module, index: int, number: int) -> Iterator[None]:
    """Tell the model's dropout layers, within this context, which piece of a batch they compute.

    Args:
        model: the model that computes the piece.
        index: index of the piece, from 0.
        number: number of equal pieces of the batch.
    """
    modules = [m for m in model.modules() if isinstance(m, Dropout)] if number > 1 else []
    try:
        for module in modules:
            module.piece = (index, number)
        yield
    finally:
        for module in modules:
            module.piece = Dropout.piece
