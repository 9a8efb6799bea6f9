"""Sums of skills: exact, or the best of a rank, with the error said."""

from __future__ import annotations

import judges
import pytest
import torch
from judges import made_up

from expertise.errors import SkillError
from expertise.skills import Factors, Skill, merge_skills

LAYERS = {"q": (3, 9, 7), "m.up": (2, 6, 5, 4), "m.down": (2, 5, 6, 4)}


def skills() -> list[Skill]:
    return [
        made_up(LAYERS, 0, "a"),
        made_up({"q": (5, 9, 7), "more": (1, 2, 3)}, 1, "b"),
        made_up(LAYERS, 2, "c"),
    ]


def test_the_exact_sum_has_the_ranks_added_up() -> None:
    a, b, c = skills()
    merged = merge_skills([a, b, c], name="sum", weights=[0.7, -0.3, 2.0])
    assert merged.skill.name == "sum"
    assert {address: made.rank for address, made in merged.skill.factors.items()} == {
        "q": 11,
        "m.up": 4,
        "m.down": 4,
        "more": 1,
    }
    for address, made in merged.skill.factors.items():
        wanted = sum(
            weight * skill.factors[address].delta()
            for skill, weight in zip((a, b, c), (0.7, -0.3, 2.0), strict=True)
            if address in skill.factors
        )
        torch.testing.assert_close(made.delta(), wanted, rtol=1e-5, atol=1e-5)
    assert merged.error == 0.0
    assert set(merged.errors.values()) == {0.0}


def test_a_multiplier_in_common_stays_one_and_low_precision_is_not_rounded_again() -> None:
    a, c = (skill.to(dtype=torch.bfloat16) for skill in (skills()[0], skills()[2]))
    made = merge_skills([a, c], name="sum").skill.factors["q"]
    assert made.scaling == a.factors["q"].scaling
    assert made.A.dtype == torch.float32
    assert torch.equal(made.B, torch.cat([a.factors["q"].B, c.factors["q"].B], dim=1).float())


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_cut_sum_is_the_best_of_its_rank(rank: int) -> None:
    a, b, c = skills()
    exact = merge_skills([a, b, c], name="sum").skill
    merged = merge_skills([a, b, c], name="sum", rank=rank)
    lost = all_of_it = 0.0
    for address, made in merged.skill.factors.items():
        delta = exact.factors[address].delta().double()
        assert made.rank == min(rank, exact.factors[address].rank)
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        best = U[..., :rank] @ torch.diag_embed(S[..., :rank]) @ Vh[..., :rank, :]
        torch.testing.assert_close(made.delta().double(), best, rtol=1e-4, atol=1e-5)
        error = float((made.delta().double() - delta).norm() / delta.norm())
        assert merged.errors[address] == pytest.approx(error, abs=1e-5)
        lost, all_of_it = lost + float((best - delta).norm() ** 2), all_of_it + float(delta.norm() ** 2)
    assert merged.error == pytest.approx((lost / all_of_it) ** 0.5, abs=1e-5)
    assert all(made.A.is_contiguous() and made.B.is_contiguous() for made in merged.skill.factors.values())


def test_a_rank_that_is_enough_loses_nothing() -> None:
    a = skills()[0]
    merged = merge_skills([a, a], name="sum", rank=3)
    assert merged.error < 1e-7
    torch.testing.assert_close(
        merged.skill.factors["q"].delta(), 2 * a.factors["q"].delta(), rtol=1e-5, atol=1e-5
    )


def test_embeddings_stay_embeddings() -> None:
    made = Factors(A=torch.randn(2, 10), B=torch.randn(3, 2), scaling=1.0, embedding=True)
    skill = Skill(name="a", factors={"e": made})
    for rank in (None, 1):
        assert merge_skills([skill, skill], name="sum", rank=rank).skill.factors["e"].embedding


def test_what_cannot_be_merged_is_one_line() -> None:
    a, b, _ = skills()
    for call, message in (
        (lambda: merge_skills([a, b], name="x", weights=[1.0]), "2 skills need as many weights, not 1"),
        (lambda: merge_skills([a, b], name="x", rank=0), "a rank must be above 0, not 0"),
        (lambda: merge_skills([], name="x"), "nothing to merge"),
        (lambda: merge_skills([a, b], name="x", weights=[0.0, 0.0]), "nothing to merge"),
        (lambda: merge_skills([a, made_up({"q": (2, 3, 4)})], name="x"), "have no base in common"),
    ):
        with pytest.raises(SkillError, match=message):
            call()


def test_skills_of_weight_zero_are_left_out() -> None:
    a, b, _ = skills()
    merged = merge_skills([a, b], name="x", weights=[1.0, 0.0]).skill
    assert {address: made.rank for address, made in merged.factors.items()} == {
        "q": 3,
        "m.up": 2,
        "m.down": 2,
    }


def test_stacks_keep_the_order_of_a_skill_that_has_all_of_them_or_need_the_base() -> None:
    path = "model.layers.0.mlp.experts"
    up, down = {f"{path}.gate_up_proj": (2, 16, 16, 4)}, {f"{path}.down_proj": (2, 8, 16, 4)}
    only_down, only_up, both = made_up(down, 0), made_up(up, 1), made_up({**up, **down}, 2)
    merged = merge_skills([only_down, both], name="x").skill
    assert list(merged.factors) == [f"{path}.gate_up_proj", f"{path}.down_proj"]
    with pytest.raises(SkillError, match=rf"different stacks of {path}, whose order is not known") as caught:
        merge_skills([only_down, only_up], name="x")
    assert caught.value.hints == ("give the base",)
    given = merge_skills([only_down, only_up], name="x", base=judges.mixture()).skill
    assert list(given.factors) == [f"{path}.gate_up_proj", f"{path}.down_proj"]
