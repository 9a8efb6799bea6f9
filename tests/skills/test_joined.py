"""Skills of any ranks joined in one weight: three ways to the same sum, and views of what each skill is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import close
from torch import Tensor

from expertise.mixture import Mixture, Routes, TopK, TopP
from expertise.mixture.dispatch import DISPATCHES
from expertise.skills import Factors
from expertise.skills.joined import JoinedSkills


def factors(ranks: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Factors]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [Factors(A=draw(r, 6), B=draw(5, r), scaling=0.5 + i) for i, r in enumerate(ranks)]


def by_definition(given: list[Factors], x: Tensor, gates: Tensor) -> Tensor:
    total = torch.zeros(len(x), 5, dtype=x.dtype)
    for i, f in enumerate(given):
        total = total + gates[:, i, None] * f.scaling * (x @ f.A.T @ f.B.T)
    return total


RANKS = [(2, 2, 2), (4, 1, 3), (1,), (3, 200, 4)]


@pytest.mark.parametrize("dispatch", ["auto", *DISPATCHES])
@pytest.mark.parametrize("ranks", RANKS)
def test_every_dispatch_and_any_ranks(ranks: tuple[int, ...], dispatch: str) -> None:
    given = factors(ranks)
    parts = JoinedSkills(given, trainable=True)
    x = torch.randn(9, 6, requires_grad=True)
    gates = torch.randn(9, len(ranks), requires_grad=True)
    routes: list[tuple[Routes, Tensor]] = [(Routes.dense(gates), gates)]
    for router in (TopK(6, len(ranks), min(2, len(ranks))), TopP(6, len(ranks), 0.6)):
        torch.nn.init.normal_(router.weight)
        chosen = router(x.detach())
        routes.append((chosen, chosen.weights()))
    for taken, weights in routes:
        found = Mixture(None, parts, dispatch=dispatch)(x, routes=taken)
        expected = by_definition(list(parts.factors()), x, weights)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        ours = torch.autograd.grad(found.sum(), [x, parts.lora_A, parts.lora_B])
        theirs = torch.autograd.grad(expected.sum(), [x, parts.lora_A, parts.lora_B])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_one_row_of_weights_counts_for_every_token() -> None:
    given = factors((2, 3))
    parts = JoinedSkills(given, trainable=False)
    x, y, gates = torch.randn(4, 6), torch.randn(4, 5), torch.tensor([[0.7, -0.3]])
    expected = y + by_definition(given, x, gates.expand(4, 2))
    before = y.clone()
    close(parts.onto(y, x, parts.weigh(gates)), expected)
    assert torch.equal(y, before)
    written = parts.onto(y, x, parts.weigh(gates), in_place=True)
    close(written, expected)
    assert written.data_ptr() == y.data_ptr()


def test_views_of_each_skill() -> None:
    given = factors((2, 3))
    parts = JoinedSkills(given, trainable=False)
    for f, back in zip(given, parts.factors(), strict=True):
        assert torch.equal(back.A, f.A)
        assert torch.equal(back.B, f.B)
        assert back.scaling == f.scaling
        with torch.no_grad():
            back.A.mul_(2.0)
            back.B.mul_(3.0)
    for f, back in zip(given, parts.factors(), strict=True):
        close(back.delta(), 6.0 * f.delta())
    assert parts.lora_A.numel() + parts.lora_B.numel() == 5 * (6 + 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_are_made_as_exactly_as_the_factors_allow(dtype: torch.dtype) -> None:
    given = [Factors(A=f.A, B=f.B, scaling=1 / 3) for f in factors((2, 3), dtype)]
    parts = JoinedSkills(given, trainable=False)
    gates: Any = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    expected = (gates / 3).repeat_interleave(torch.tensor([2, 3]), 1).to(dtype)
    assert torch.equal(parts.weigh(gates), expected)
