"""The weights that a composed model gave its skills, token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor

from expertise.lm.causal import CausalLM
from expertise.shapes import Float
from expertise.skills.composition import Composition


class Alpha:
    """Reads alpha from a model's calls; a model that is not composed has none.

    Args:
        model: any language model.
    """

    def __init__(self, model: CausalLM) -> None:
        found = model.core.__dict__.get("composition")
        self.composition: Composition | None = found if isinstance(found, Composition) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the skills, in the order of alpha; empty if the model is not composed."""
        return () if self.composition is None else self.composition.names

    @contextlib.contextmanager
    def recording(self) -> Iterator[Alpha]:
        """Record alpha of the calls within this context, for `last`."""
        if self.composition is None:
            yield self
            return
        with self.composition.recording():
            yield self

    def last(self, rows: int, tokens: int) -> Float[Tensor, "tokens skills"] | None:
        """Return alpha of the last `tokens` tokens of each row of the last recorded call, mean over layers.

        Args:
            rows: number of rows of that call.
            tokens: number of tokens of each row, counted from its end.

        Returns:
            `[rows * tokens, K]`, float32; None: there are no skills.
        """
        if self.composition is None:
            return None
        found = self.composition.alpha()
        return found.view(rows, -1, found.shape[1])[:, -tokens:].flatten(0, 1)
