"""Dropout that is the same whether a batch is computed at once or in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout whose rows in a piece of a batch are those that the whole batch would have had.

    `piece_of` says which piece it is given. It then draws for the whole batch and uses the piece's rows, so
    every piece must begin with the same random state. Given a whole batch it is `nn.Dropout`.
    """

    piece = (0, 1)
    """Index of the piece, and into how many equal pieces the batch is cut."""

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Dropout`."""
        index, number = self.piece
        if number == 1 or not self.training:
            return super().forward(x)
        whole = super().forward(x.new_ones(number * x.shape[0], *x.shape[1:]))
        return x * whole.chunk(number)[index]


@contextlib.contextmanager
def piece_of(model: nn.Module, index: int, number: int) -> Iterator[None]:
    """Where this is entered, the model's dropout is told that it sees one of several pieces of a batch.

    Args:
        model: what computes the piece.
        index: of the piece, from 0.
        number: of the equal pieces that the batch is cut into.
    """
    modules = [m for m in model.modules() if isinstance(m, Dropout)] if number > 1 else []
    try:
        for module in modules:
            module.piece = (index, number)
        yield
    finally:
        for module in modules:
            module.piece = Dropout.piece
