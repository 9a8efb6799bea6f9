"""Parts by themselves: initial weights, joined low-rank parts, and when parts are computed densely."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.mixture import LowRankExperts, Routes, SwiGLUExperts, TopK
from expertise.mixture.parts import low_rank

# --- initial weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: SwiGLUExperts(3, 200, 45), {"gate_up": 200**-0.5, "down": 45**-0.5}),
        (lambda: LowRankExperts(5, 300, 70, 20), {"lora_A": 300**-0.5}),
    ],
    ids=["swiglu", "low rank"],
)
def test_initial_weights_keep_the_variance_of_their_input(make: Any, expected: dict[str, float]) -> None:
    """Widths differ, so that a standard deviation that goes by another one is seen."""
    weights = dict(make().named_parameters())
    for name, std in expected.items():
        weight = weights[name].detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.04), name
        assert abs(float(weight.mean())) < 4 * std / math.sqrt(weight.numel()), name
    others = [weight for name, weight in weights.items() if name not in expected]
    assert not any(weight.any() for weight in others)


@pytest.mark.parametrize(
    "parts", [SwiGLUExperts(2, 8, 4), LowRankExperts(2, 8, 6, 3)], ids=["swiglu", "low rank"]
)
def test_resetting_draws_anew(parts: Any) -> None:
    before = {name: tensor.clone() for name, tensor in parts.named_parameters()}
    with torch.no_grad():
        for tensor in parts.parameters():
            tensor.fill_(9.0)
    parts.reset_parameters()
    for name, tensor in parts.named_parameters():
        assert not (tensor == 9).any(), name
        assert name == "lora_B" or not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", [SwiGLUExperts, LowRankExperts])
def test_numbers_of_one_part_are_counted_without_building_it(kind: Any) -> None:
    sizes = {"hidden": 5} if kind is SwiGLUExperts else {"rank": 5}
    config = kind.Config(num_parts=3, **sizes)
    built = config.build(7)
    assert 3 * config.num_params_each(7) == sum(p.numel() for p in built.parameters())
    assert (built.num_parts, built.in_features, built.out_features) == (3, 7, 7)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 1), (1, -1)])
def test_one_is_the_least_size(sizes: tuple[int, int]) -> None:
    for config, name in ((SwiGLUExperts.Config, "hidden"), (LowRankExperts.Config, "rank")):
        with pytest.raises(Exception, match="above 0"):
            config(**{"num_parts": sizes[0], name: sizes[1]})
        config(**{"num_parts": 1, name: 1})


def test_printing_names_the_sizes() -> None:
    assert "num_parts=2, dim=8, hidden=4" in repr(SwiGLUExperts(2, 8, 4))
    assert "num_parts=2, in_features=8, out_features=6, rank=3" in repr(LowRankExperts(2, 8, 6, 3))
    assert "ranks=[1, 2]" in repr(_joined((1, 2))[0])


# --- joined low-rank parts --------------------------------------------------------------------------------

OFFSETS = torch.tensor([2, 2, 5], dtype=torch.int32)
"""Of five tokens over three experts, the second of which has none."""


def _joined(
    ranks: tuple[int, ...], num_experts: int | None = None, **options: Any
) -> tuple[LowRankExperts, list[tuple[Tensor, Tensor]], list[float]]:
    stack = () if num_experts is None else (num_experts,)
    factors = [(torch.randn(*stack, r, 6), torch.randn(*stack, 4, r)) for r in ranks]
    scalings = [0.5 + number for number in range(len(ranks))]
    return LowRankExperts.joined(factors, scalings, **options), factors, scalings


def _by_hand(x: Tensor, gates: Tensor, factors: list[tuple[Tensor, Tensor]], scalings: list[float]) -> Tensor:
    terms = [
        gates[:, [i]] * scaling * (x @ down.T @ up.T)
        for i, ((down, up), scaling) in enumerate(zip(factors, scalings, strict=True))
    ]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("ranks", [(2,), (3, 1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("rows", ["one row of weights", "a row each"])
def test_the_sum_is_the_same_however_it_is_asked_for(ranks: tuple[int, ...], rows: str) -> None:
    parts, factors, scalings = _joined(ranks)
    x, y = torch.randn(5, 6), torch.randn(5, 4)
    gates = torch.randn(1 if rows == "one row of weights" else 5, len(ranks))
    expected = y + _by_hand(x, gates.expand(5, -1), factors, scalings)
    weights = parts.weigh(gates)
    before = y.clone()
    torch.testing.assert_close(parts.onto(y, x, weights), expected)
    assert torch.equal(y, before)
    written = y.clone()
    assert parts.onto(written, x, weights, in_place=True) is written
    torch.testing.assert_close(written, expected)
    fixed = y.clone()
    assert parts.fixed(weights).onto(fixed, x) is fixed
    torch.testing.assert_close(fixed, expected)


@pytest.mark.parametrize("ranks", [(2,), (3, 1, 2), (2, 2)], ids=str)
def test_a_stack_of_experts_has_its_own_factors_for_each(ranks: tuple[int, ...]) -> None:
    parts, factors, scalings = _joined(ranks, num_experts=3)
    x, y, gates = torch.randn(5, 6), torch.randn(5, 4), torch.randn(5, len(ranks))
    expert_of_row = [0, 0, 2, 2, 2]
    expected = torch.cat(
        [
            _by_hand(x[[row]], gates[[row]], [(down[e], up[e]) for down, up in factors], scalings)
            for row, e in enumerate(expert_of_row)
        ]
    )
    weights = parts.weigh(gates)
    torch.testing.assert_close(parts.onto(y, x, weights, OFFSETS), y + expected)
    written = y.clone()
    assert parts.onto(written, x, weights, OFFSETS, in_place=True) is written
    torch.testing.assert_close(written, y + expected)
    for e, rows in ((0, slice(0, 2)), (2, slice(2, 5))):
        torch.testing.assert_close(parts.of_expert(e, x[rows], weights[rows]), expected[rows])


@pytest.mark.parametrize(
    ("dtype", "whole"), [(torch.float32, 4), (torch.bfloat16, 8), (torch.float64, 2)], ids=str
)
def test_ranks_beside_a_stack_are_filled_up_with_zeros_to_16_bytes(dtype: torch.dtype, whole: int) -> None:
    factors = [(torch.ones(2, r, 6, dtype=dtype), torch.ones(2, 4, r, dtype=dtype)) for r in (3, 2)]
    parts = LowRankExperts.joined(factors, [1.0, 1.0])
    width = -(-5 // whole) * whole
    assert parts.lora_A.shape == (2, width, 6)
    assert parts.lora_B.shape == (2, 4, width)
    assert parts.lora_A[:, :5].eq(1).all()
    assert parts.lora_B[..., :5].eq(1).all()
    assert not parts.lora_A[:, 5:].any()
    assert not parts.lora_B[..., 5:].any()
    assert parts.owner.tolist() == [0, 0, 0, 1, 1] + [0] * (width - 5)


def test_what_joined_parts_say_of_themselves() -> None:
    parts, _, scalings = _joined((3, 1, 2))
    assert (parts.num_parts, parts.in_features, parts.out_features) == (3, 6, 4)
    assert (parts.ranks, parts.scalings) == ((3, 1, 2), tuple(scalings))
    assert parts.spans() == [slice(0, 3), slice(3, 4), slice(4, 6)]
    assert parts.is_joined
    assert not LowRankExperts(3, 6, 4, 2).is_joined
    assert set(parts.state_dict()) == {"lora_A", "lora_B"}
    assert not any(p.requires_grad for p in parts.parameters()), "they stand still unless asked to learn"
    assert all(p.requires_grad for p in _joined((3, 1, 2), trainable=True)[0].parameters())


def test_the_layout_tells_weights_that_can_be_shared() -> None:
    first, other_factors = _joined((3, 1))[0], _joined((3, 1))[0]
    assert first.layout == other_factors.layout != ""
    assert first.layout != _joined((1, 3))[0].layout
    factors = [(torch.ones(r, 6), torch.ones(4, r)) for r in (3, 1)]
    assert first.layout != LowRankExperts.joined(factors, [1.0, 2.0]).layout


def test_scaling_is_at_least_float32() -> None:
    low = [(torch.ones(1, 6, dtype=torch.bfloat16), torch.ones(4, 1, dtype=torch.bfloat16))]
    parts = LowRankExperts.joined(low, [0.1])
    assert parts.scaling.dtype == torch.float32
    assert parts.weigh(torch.ones(1, 1)).dtype == torch.bfloat16
    assert (
        LowRankExperts.joined([(a.double(), b.double()) for a, b in low], [0.1]).scaling.dtype
        == torch.float64
    )


# --- dense or grouped -------------------------------------------------------------------------------------


def _sparse(slots: int, num_parts: int, counts: list[int] | None = None) -> Routes:
    tokens = 4 if counts is None else len(counts)
    ids = torch.arange(slots).expand(tokens, slots)
    table = torch.full((tokens, num_parts), 1 / num_parts)
    return Routes(
        gates=torch.ones(tokens, slots),
        affinities=table,
        part_ids=ids,
        counts=None if counts is None else torch.tensor(counts),
    )


def test_low_rank_parts_are_dense_up_to_the_cost_of_moving_a_token() -> None:
    """One of K parts of rank r is taken: dense as long as K r is at most r plus what moving costs."""
    moving = low_rank._MOVING
    rank = moving // 3  # K = 4: 4 r = r + moving
    assert LowRankExperts(4, 8, 8, rank).is_dense_for(_sparse(1, 4))
    assert not LowRankExperts(4, 8, 8, rank + 1).is_dense_for(_sparse(1, 4))
    assert LowRankExperts(4, 8, 8, rank + 1).is_dense_for(_sparse(2, 4)), "two parts cost twice"


def test_what_counts_is_how_many_parts_tokens_take_not_how_many_they_may() -> None:
    parts = LowRankExperts(8, 8, 8, 64)  # dense from 512 / 160 = 3.2 parts per token
    assert parts.is_dense_for(_sparse(4, 8))
    assert parts.is_dense_for(_sparse(4, 8, [4, 3, 4, 3]))
    assert not parts.is_dense_for(_sparse(4, 8, [4, 3, 3, 2]))
    no_token = Routes(
        gates=torch.ones(0, 4),
        affinities=torch.ones(0, 8),
        part_ids=torch.zeros(0, 4, dtype=torch.int64),
        counts=torch.zeros(0, dtype=torch.int64),
    )
    assert not parts.is_dense_for(no_token)


def test_a_router_s_own_routes_are_sparse_for_experts_of_any_size() -> None:
    routes = TopK(8, 4, 1)(torch.randn(3, 8))
    assert not SwiGLUExperts(4, 8, 1).is_dense_for(routes)
