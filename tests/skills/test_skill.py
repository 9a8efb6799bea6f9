"""Factors, skills and cards in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from expertise.errors import SkillError
from expertise.skills import Card, Factors, Skill


def factors(
    rank: int = 2, num_in: int = 5, num_out: int = 3, experts: int | None = None, **more: Any
) -> Factors:
    leading = [] if experts is None else [experts]
    A, B = torch.randn(*leading, rank, num_in), torch.randn(*leading, num_out, rank)
    return Factors(A=A, B=B, scaling=more.pop("scaling", 0.5), **more)


def test_the_change_of_a_weight_is_the_product_scaled() -> None:
    f, x = factors(scaling=1.5), torch.randn(7, 5)
    torch.testing.assert_close(F.linear(x, f.delta()), 1.5 * (x @ f.A.T) @ f.B.T)
    assert (f.rank, f.num_experts, f.in_features, f.out_features) == (2, None, 5, 3)


def test_the_change_of_stacked_experts_is_one_product_each() -> None:
    f = factors(experts=4)
    assert (f.rank, f.num_experts, f.in_features, f.out_features) == (2, 4, 5, 3)
    for expert in range(4):
        torch.testing.assert_close(f.delta()[expert], 0.5 * f.B[expert] @ f.A[expert])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (([2, 5], [3, 4]), r"\[2, 5\] and \[3, 4\] have no rank in common"),
        (([0, 5], [3, 0]), "have no rank in common"),
        (([5], [3, 2]), r"must be \[r, in\] and \[out, r\], not \[5\] and \[3, 2\]"),
        (([2, 2, 5], [3, 2]), r"not \[2, 2, 5\] and \[3, 2\]"),
        (([2, 2, 5], [3, 3, 2]), r"not \[2, 2, 5\] and \[3, 3, 2\]"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(SkillError, match=message):
        Factors(A=torch.ones(shapes[0]), B=torch.ones(shapes[1]), scaling=1.0)


def test_dtypes_scalings_and_empty_skills_are_refused() -> None:
    f = factors()
    with pytest.raises(SkillError, match=r"not torch\.float32 and torch\.bfloat16"):
        Factors(A=f.A, B=f.B.bfloat16(), scaling=1.0)
    with pytest.raises(SkillError, match="floating dtype"):
        Factors(A=f.A.long(), B=f.B.long(), scaling=1.0)
    with pytest.raises(SkillError, match="finite, not nan"):
        factors(scaling=float("nan"))
    with pytest.raises(SkillError, match="two dimensions, not 3"):
        factors(experts=2, embedding=True)
    with pytest.raises(SkillError, match="'x' adapts nothing"):
        Skill(name="x", factors={})
    with pytest.raises(SkillError, match="unknown convention of scale 'alpha'"):
        Card(name="x", scale_convention="alpha")


def test_a_skill_moves_as_a_whole_and_keeps_its_own_table() -> None:
    table = {"a": factors(), "b": factors(experts=2)}
    skill = Skill(name="x", factors=table)
    table.clear()
    moved = skill.to(dtype=torch.float64)
    assert {f.A.dtype for f in moved.factors.values()} | {f.B.dtype for f in moved.factors.values()} == {
        torch.float64
    }
    assert list(moved.factors) == ["a", "b"]
    assert skill.factors["a"].A.dtype == torch.float32
    assert skill.num_params() == (2 * 5 + 3 * 2) + 2 * (2 * 5 + 3 * 2)


def test_a_card_gives_the_ranks_that_occur() -> None:
    assert Card(name="x", targets={"a": 8, "b": 2, "c": 8}).ranks == (2, 8)
