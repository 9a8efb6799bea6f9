"""Singular values of a low-rank change, without forming the full matrix: `scaling * B A = U diag(S) V^T`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from expertise.shapes import Float
from expertise.skills.skill import Factors


@dataclasses.dataclass(frozen=True)
class ThinSVD:
    """Singular values and vectors of a change, in float64; a stack of experts has E of them."""

    U: Float[Tensor, "*experts out rank"]
    """Orthonormal columns: output directions of the change, strongest first."""
    S: Float[Tensor, "*experts rank"]
    """Singular values, descending, at least zero."""
    V: Float[Tensor, "*experts inp rank"]
    """Orthonormal columns: input directions of the change."""

    def ranks(self) -> Float[Tensor, "*experts rank"]:
        """1 for each direction with a singular value above rounding error, else 0."""
        tiny = max(self.U.shape[-2], self.V.shape[-2]) * torch.finfo(self.S.dtype).eps * self.S[..., :1]
        return self.S.gt(tiny).to(self.S.dtype)


def thin_svd(factors: Factors) -> ThinSVD:
    """The singular value decomposition of `scaling * B A`.

    By QR: `B = Q_B R_B`, `A^T = Q_A R_A`, so `B A = Q_B (R_B R_A^T) Q_A^T`, and only the small product in the
    middle is decomposed: `O((in + out) r^2)`.
    """
    q_out, r_out = torch.linalg.qr(factors.B.double())
    q_in, r_in = torch.linalg.qr(factors.A.double().mT)
    left, values, right = torch.linalg.svd(factors.scaling * r_out @ r_in.mT, full_matrices=False)
    return ThinSVD(q_out @ left, values, q_in @ right.mT)


def inner(first: Factors, second: Factors) -> Float[Tensor, ""]:
    """`<delta_1, delta_2>`, the sum of products of all entries, in float64.

    `tr(A_1^T B_1^T B_2 A_2) = sum((B_1^T B_2) * (A_1 A_2^T))`: two products of rank by rank.
    """
    outer = first.B.double().mT @ second.B.double()
    return first.scaling * second.scaling * (outer * (first.A.double() @ second.A.double().mT)).sum()


def angles(
    first: Float[Tensor, "*experts width one"],
    first_has: Float[Tensor, "*experts one"],
    second: Float[Tensor, "*experts width two"],
    second_has: Float[Tensor, "*experts two"],
) -> Float[Tensor, " angles"]:
    """Principal angles between two subspaces, in degrees, ascending for each expert.

    Their cosines are the singular values of `Q_1^T Q_2` (Björck and Golub 1973, Theorem 1).

    Args:
        first: orthonormal columns.
        first_has: 1 for the columns that count.
        second: orthonormal columns.
        second_has: 1 for the columns that count.

    Returns:
        As many angles as the smaller subspace has dimensions, one expert after the other.
    """
    cosines = torch.linalg.svdvals((first * first_has[..., None, :]).mT @ (second * second_has[..., None, :]))
    number = torch.minimum(first_has.sum(-1), second_has.sum(-1))
    counted = torch.arange(cosines.shape[-1], device=cosines.device) < number[..., None]
    return torch.rad2deg(torch.arccos(cosines[counted].clamp(max=1.0)))
