"""Measures on factors against the same measures on the formed change of a weight."""

from __future__ import annotations

import pytest
import torch
from judges import made_up
from torch import Tensor

from expertise.skills import Factors
from expertise.skills.subspaces import angles, inner, thin_svd

SIZES = [(3, 9, 7), (1, 4, 5), (6, 4, 9), (5, 9, 3), (2, 6, 5, 4)]


def one(sizes: tuple[int, ...], seed: int = 0) -> Factors:
    return made_up({"w": sizes}, seed).factors["w"].to(dtype=torch.float64)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_decomposition_is_that_of_the_formed_change(sizes: tuple[int, ...]) -> None:
    made = one(sizes)
    svd = thin_svd(made)
    torch.testing.assert_close(svd.U @ torch.diag_embed(svd.S) @ svd.V.mT, made.delta())
    rank = min(sizes[:3])
    torch.testing.assert_close(svd.S[..., :rank], torch.linalg.svdvals(made.delta())[..., :rank])
    eye = torch.eye(svd.S.shape[-1], dtype=torch.float64).expand(*svd.S.shape, -1)
    torch.testing.assert_close(svd.U.mT @ svd.U, eye)
    torch.testing.assert_close(svd.V.mT @ svd.V, eye)
    assert svd.ranks().sum(-1).eq(rank).all()


@pytest.mark.parametrize("sizes", SIZES)
def test_inner_products_are_those_of_the_formed_changes(sizes: tuple[int, ...]) -> None:
    first, second = one(sizes), one((sizes[0] + 2, *sizes[1:]), 1)
    torch.testing.assert_close(inner(first, second), (first.delta() * second.delta()).sum())


def test_directions_that_are_there_in_shape_only_do_not_count() -> None:
    made = one((3, 9, 7))
    doubled = Factors(
        A=torch.cat([made.A, made.A]), B=torch.cat([made.B, -made.B[:, [0, 2, 1]]], dim=1), scaling=1.0
    )
    assert thin_svd(doubled).ranks().sum() < 6
    assert thin_svd(Factors(A=made.A, B=made.B * 0, scaling=1.0)).ranks().sum() == 0


def basis(*columns: list[float]) -> tuple[Tensor, Tensor]:
    q = torch.linalg.qr(torch.tensor(columns, dtype=torch.float64).T).Q
    return q, torch.ones(q.shape[1], dtype=torch.float64)


def test_angles_between_known_subspaces() -> None:
    plane, line = basis([1, 0, 0], [0, 1, 0]), basis([1, 0, 1])
    torch.testing.assert_close(angles(*plane, *line), torch.tensor([45.0], dtype=torch.float64))
    torch.testing.assert_close(angles(*plane, *plane), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)
    other = basis([0, 1, 0], [0, 0, 1])
    torch.testing.assert_close(
        angles(*plane, *other), torch.tensor([0.0, 90.0], dtype=torch.float64), atol=1e-5, rtol=0
    )
    first_only = (plane[0], torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert angles(*first_only, *other).shape == (1,)


def test_angles_of_experts_come_one_after_the_other() -> None:
    plane, line = basis([1, 0, 0], [0, 1, 0]), basis([1, 0, 1])
    flat = basis([1, 1, 0])
    found = angles(
        torch.stack([plane[0]] * 2),
        torch.stack([plane[1]] * 2),
        torch.stack([line[0], flat[0]]),
        torch.ones(2, 1).double(),
    )
    torch.testing.assert_close(found, torch.tensor([45.0, 0.0], dtype=torch.float64), atol=1e-5, rtol=0)
