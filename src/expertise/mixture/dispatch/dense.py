"""Dispatch of dense routes: all parts joined into one wide product."""

from __future__ import annotations

from torch import Tensor

from expertise.mixture.parts.base import Parts
from expertise.mixture.routes import Routes
from expertise.shapes import Float


def dense(
    x: Float[Tensor, "tokens in_features"], routes: Routes, parts: Parts
) -> Float[Tensor, "tokens out_features"]:
    """Sum over all parts; work grows with their number, so it suits few, low-rank or densely routed parts.

    For low-rank parts this is "concatenate A, scale, concatenate B" (PSEC's composition in parameter space).

    Args:
        x: tokens.
        routes: dense; sparse ones are filled up with zero weights.
        parts: any kind.
    """
    return parts.dense(x, routes.weights()).to(x.dtype)
