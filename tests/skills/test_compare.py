"""Similarity of skills and proposals, against formed changes and made-up cases with a known answer."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from judges import made_up
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import SkillError
from expertise.skills import Factors, Skill, compare_skills

LAYERS = {"q": (3, 9, 7), "up": (2, 6, 5, 4), "down": (2, 5, 6, 4)}


def flat(skill: Skill, addresses: list[str]) -> Tensor:
    """All that a skill changes, as one vector; zeros where it changes nothing."""
    sizes = {"q": 63, "up": 120, "down": 120, "more": 6}
    return torch.cat(
        [
            skill.factors[a].delta().double().flatten()
            if a in skill.factors
            else torch.zeros(sizes[a]).double()
            for a in addresses
        ]
    )


def scaled(skill: Skill, name: str, by: float, noise: float = 0.0) -> Skill:
    factors = {
        a: dataclasses.replace(f, scaling=f.scaling * by, B=f.B + noise * torch.randn_like(f.B))
        for a, f in skill.factors.items()
    }
    return Skill(name=name, factors=factors)


def test_cosines_and_norms_are_those_of_the_formed_changes() -> None:
    a, b = made_up(LAYERS, 0, "a"), made_up({"q": (5, 9, 7), "more": (1, 2, 3), "up": (1, 6, 5, 4)}, 1, "b")
    found = compare_skills([a, b])
    every = ["q", "up", "down", "more"]
    (pair,) = found.pairs
    assert pair.cosine == pytest.approx(
        float(F.cosine_similarity(flat(a, every), flat(b, every), dim=0)), abs=1e-6
    )
    assert set(pair.layers) == {"q", "up"}
    for address, layer in pair.layers.items():
        wanted = F.cosine_similarity(flat(a, [address]), flat(b, [address]), dim=0)
        assert layer.cosine == pytest.approx(float(wanted), abs=1e-6)
    assert len(pair.layers["q"].out_angles) == len(pair.layers["q"].in_angles) == 3
    assert len(pair.layers["up"].out_angles) == 4 * 1
    assert [e.name for e in found.energies] == ["a", "b"]
    for skill, energy in zip((a, b), found.energies, strict=True):
        assert energy.norm == pytest.approx(float(flat(skill, every).norm()), rel=1e-6)
        squares = sum(value**2 for values in energy.spectrum.values() for value in values)
        assert squares == pytest.approx(energy.norm**2, rel=1e-6)
    stack = a.factors["up"].delta()
    wanted = torch.linalg.svdvals(stack)[:, :2].square().sum(0).sqrt()
    assert found.energies[0].spectrum["up"] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_a_skill_beside_itself_scaled_is_the_same_direction_in_all_measures() -> None:
    a = made_up(LAYERS, 0, "a")
    found = compare_skills([a, scaled(a, "b", -2.0)])
    (pair,) = found.pairs
    assert pair.cosine == pytest.approx(-1.0)
    for layer in pair.layers.values():
        assert layer.cosine == pytest.approx(-1.0)
        assert max(*layer.out_angles, *layer.in_angles) < 1e-4


def test_skills_with_nothing_in_common_have_a_cosine_of_zero_and_right_angles() -> None:
    A, B = torch.eye(4)[:2], torch.eye(5)[:, :2]
    a = Skill(name="a", factors={"q": Factors(A=A, B=B, scaling=1.0)})
    b = Skill(name="b", factors={"q": Factors(A=torch.eye(4)[2:], B=torch.eye(5)[:, 2:4], scaling=1.0)})
    (pair,) = compare_skills([a, b]).pairs
    assert pair.cosine == 0.0
    assert pair.layers["q"].out_angles == pair.layers["q"].in_angles == (90.0, 90.0)
    none = compare_skills([made_up({"x": (2, 3, 4)}, 0, "a"), made_up({"y": (2, 3, 4)}, 1, "b")])
    assert none.pairs[0].cosine == 0.0
    assert none.pairs[0].layers == {}


def test_agreement_on_inputs_is_that_of_the_outputs() -> None:
    a, b = made_up(LAYERS, 0, "a"), made_up({"q": (1, 9, 7), "up": (1, 6, 5, 4)}, 1, "b")
    x = {
        "q": torch.randn(2, 3, 9),
        "up": torch.randn(8, 6),
        "down": torch.randn(8, 5),
        "other": torch.randn(1, 1),
    }
    (pair,) = compare_skills([a, b], inputs=x).pairs
    outs = []
    for skill in (a, b):
        rows = [F.linear(x["q"], skill.factors["q"].delta()).flatten()]
        for address in ("up", "down"):
            made = skill.factors.get(address)
            rows += [torch.zeros(4 * 8 * 6) if made is None else (x[address] @ made.delta().mT).flatten()]
        outs.append(torch.cat(rows).double())
    assert pair.agreement == pytest.approx(float(F.cosine_similarity(*outs, dim=0)), abs=1e-5)
    larger = max(float(out.norm()) for out in outs)
    assert pair.distance == pytest.approx(float((outs[0] - outs[1]).norm()) / larger, rel=1e-5)
    same = compare_skills([a, scaled(a, "b", 1.0)], inputs=x).pairs[0]
    assert same.agreement == pytest.approx(1.0)
    assert same.distance == pytest.approx(0.0, abs=1e-6)


def test_agreement_takes_a_function_of_a_skill_and_ids_of_an_embedding() -> None:
    a, b = made_up(LAYERS, 0, "a"), made_up(LAYERS, 1, "b")
    x = torch.randn(4, 9)
    by_layer = compare_skills([a, b], inputs={"q": x}).pairs[0]
    by_call = compare_skills([a, b], inputs=lambda skill: F.linear(x, skill.factors["q"].delta())).pairs[0]
    assert by_call.agreement == pytest.approx(by_layer.agreement, abs=1e-6)
    embeddings = [
        Skill(
            name=name,
            factors={"e": Factors(A=torch.randn(2, 10), B=torch.randn(3, 2), scaling=1.0, embedding=True)},
        )
        for name in "ab"
    ]
    ids = torch.tensor([[1, 9], [0, 1]])
    found = compare_skills(embeddings, inputs={"e": ids}).pairs[0]
    one, two = (skill.factors["e"].delta().T[ids].flatten() for skill in embeddings)
    assert found.agreement == pytest.approx(float(F.cosine_similarity(one, two, dim=0)), abs=1e-5)
    with pytest.raises(SkillError, match="inputs of e must be ids below 10"):
        compare_skills(embeddings, inputs={"e": torch.tensor([10])})
    with pytest.raises(SkillError, match="inputs of e must be ids below 10"):
        compare_skills(embeddings, inputs={"e": torch.ones(3)})
    with pytest.raises(SkillError, match="inputs of q must be 9 wide, not 8"):
        compare_skills([a, b], inputs={"q": torch.ones(3, 8)})
    with pytest.raises(SkillError, match="outputs differ in shape"):
        compare_skills([a, b], inputs=lambda skill: torch.ones(2 if skill.name == "a" else 3))


def test_a_redundant_pair_is_proposed_and_nothing_else() -> None:
    torch.manual_seed(0)
    a, c = made_up(LAYERS, 0, "a"), made_up(LAYERS, 1, "c")
    found = compare_skills([a, scaled(a, "b", 3.0, noise=0.05), c], energy=1.0)
    (proposal,) = found.proposals
    assert (proposal.kind, proposal.skills) == ("redundant", ("a", "b"))
    assert proposal.reason.startswith("a and b change the base in the same direction: cosine 0.9")
    assert proposal.reason.endswith("proposed from 0.95")
    opposite = compare_skills([a, scaled(a, "b", -1.0)], energy=1.0).proposals
    assert "the opposite direction" in opposite[0].reason
    assert compare_skills([a, scaled(a, "b", 3.0, noise=0.05)], energy=1.0, redundant=0.99999).proposals == ()


def test_the_smallest_rank_that_keeps_the_energy_is_proposed() -> None:
    A, B = torch.eye(6)[:4], torch.eye(5)[:, :4] * torch.tensor([10.0, 5.0, 1.0, 0.0])
    skill = Skill(name="a", factors={"q": Factors(A=A, B=B, scaling=2.0)})
    (found,) = compare_skills([skill]).energies
    assert found.shares() == pytest.approx([100 / 126, 125 / 126, 1.0, 1.0])
    for share, rank in ((0.75, 1), (0.99, 2), (0.993, 3), (1.0, 3)):
        (proposal,) = compare_skills([skill], energy=share).proposals
        assert (proposal.kind, proposal.skills, proposal.rank) == ("smaller rank", ("a",), rank)
    assert "keeps 99.21% of its energy at rank 2 of 4, proposed from 99.00%" in (
        compare_skills([skill], energy=0.99).proposals[0].reason
    )
    wide = Skill(name="a", factors={"q": Factors(A=torch.eye(6)[:4], B=torch.eye(5)[:, :4], scaling=2.0)})
    assert compare_skills([wide]).proposals == ()


def test_a_skill_without_effect_and_one_without_use_are_proposed() -> None:
    a, b = made_up(LAYERS, 0, "a"), scaled(made_up(LAYERS, 1, "b"), "b", 0.0)
    found = compare_skills(
        [a, b], energy=1.0, inputs={"q": torch.ones(1, 9)}, compositions={"run": ["b"], "x": []}
    )
    assert [(p.kind, p.skills) for p in found.proposals] == [("no effect", ("b",)), ("unused", ("a",))]
    assert found.proposals[1].reason == "none of 2 compositions uses a"
    assert found.energies[1].shares() == []
    assert found.pairs[0].cosine is None
    assert found.pairs[0].agreement is None
    assert found.pairs[0].distance == pytest.approx(1.0)
    assert found.pairs[0].layers["q"].cosine is None
    assert found.pairs[0].layers["q"].out_angles == ()


def test_a_comparison_is_json() -> None:
    found = compare_skills([made_up(LAYERS, seed, name) for seed, name in enumerate("abc")], compositions={})
    text = json.dumps(found.to_json(), allow_nan=False)
    assert set(json.loads(text)) == {"pairs", "energies", "proposals"}
    assert len(json.loads(text)["pairs"]) == 3


def test_skills_of_bases_of_other_shapes_are_refused() -> None:
    with pytest.raises(SkillError, match="there is no skill to compare"):
        compare_skills([])
    with pytest.raises(
        SkillError, match="skills a and b have no base in common: they adapt q in different shapes"
    ):
        compare_skills([made_up({"q": (2, 9, 7)}, 0, "a"), made_up({"q": (2, 7, 9)}, 0, "b")])


def test_no_change_of_a_weight_is_formed() -> None:
    """A vocabulary of 300,000 and a width of 20,000 would be 48 GB."""
    sizes = {"e": (2, 300_000, 20_000)}
    found = compare_skills([made_up(sizes, 0, "a"), made_up(sizes, 1, "b")])
    assert len(found.pairs[0].layers["e"].in_angles) == 2
