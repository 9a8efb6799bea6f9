"""`Parts`: E functions of one kind whose weights are stacked, computed in one of three ways."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


class Parts(nn.Module, abc.ABC):
    """Base class of every kind of part. It sees tokens and the parts that they take, but never a router."""

    num_parts: int
    in_features: int
    out_features: int

    @abc.abstractmethod
    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """Apply a single part to tokens; `grouped` and `dense` must agree with it."""

    @abc.abstractmethod
    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Apply each part to its own rows.

        Args:
            rows: tokens sorted by part; a token stands once for each part that it takes.
            offsets: end of each part's rows (int32).
        """

    @abc.abstractmethod
    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Weighted sum over all parts for every token, computed as one wide product."""

    def carry(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens carried"]:
        """The rows that a dispatch moves to the parts: the tokens, with further columns where a kind needs
        them."""
        return x

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`; a kind may override it to do both in one product."""
        return y + self.dense(x, gates).to(y.dtype)

    def is_dense_for(self, routes: Routes) -> bool:
        """True if it is faster to compute every part for every token than only the chosen ones."""
        return routes.is_dense

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw new weights, such that each product keeps the variance of its input."""
