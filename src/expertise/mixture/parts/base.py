"""`Parts`: E functions of one kind whose weights are stacked, computable in three ways."""

from __future__ import annotations

import abc

from torch import Tensor, nn

from expertise.mixture.routes import Routes
from expertise.shapes import Float, Int


class Parts(nn.Module, abc.ABC):
    """Base of every kind of part. A part never sees a router: only tokens, and which of them are its own."""

    num_parts: int
    in_features: int
    out_features: int

    @abc.abstractmethod
    def one(self, part: int, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens out_features"]:
        """A single part applied to tokens: the definition that the other two must equal."""

    @abc.abstractmethod
    def grouped(
        self, rows: Float[Tensor, "rows in_features"], offsets: Int[Tensor, " parts"]
    ) -> Float[Tensor, "rows out_features"]:
        """Each part applied to its own rows.

        Args:
            rows: tokens sorted by part; a token stands once for each part that it takes.
            offsets: where each part's rows end (int32).
        """

    @abc.abstractmethod
    def dense(
        self, x: Float[Tensor, "tokens in_features"], gates: Float[Tensor, "tokens parts"]
    ) -> Float[Tensor, "tokens out_features"]:
        """Weighted sum over all parts for every token: parts joined into one wide product."""

    def carry(self, x: Float[Tensor, "tokens in_features"]) -> Float[Tensor, "tokens carried"]:
        """What a dispatch moves to the parts for each token: the token, unless more must go along."""
        return x

    def dense_onto(
        self,
        y: Float[Tensor, "tokens out_features"],
        x: Float[Tensor, "tokens in_features"],
        gates: Float[Tensor, "tokens parts"],
    ) -> Float[Tensor, "tokens out_features"]:
        """`y + dense(x, gates)`, for kinds that can do both at once."""
        return y + self.dense(x, gates).to(y.dtype)

    def is_dense_for(self, routes: Routes) -> bool:
        """Whether every part for every token is the faster way to compute these routes."""
        return routes.is_dense

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw the weights anew, each product keeping the variance of its input."""
