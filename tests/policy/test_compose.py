"""Composition in parameter space against weights that are merged by hand, state by state."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expertise.errors import RecipeError, SkillError
from expertise.mixture import ROUTERS
from expertise.policy import Critics, DiffusionConfig, DiffusionPolicy, load, save
from expertise.policy.alpha import ALPHA
from expertise.policy.compose import ComposedPolicy
from expertise.policy.network import PlainNetwork, ResidualNetwork
from expertise.skills.library import Library
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import all_targets

SMALL = PlainNetwork.Config(hidden=16, num_layers=2, time_features=4)

WEIGHERS = [name for name in ROUTERS if ROUTERS[name].context_kind != "token ids"]

MakePolicy = Callable[..., DiffusionPolicy]
MakeSkill = Callable[..., Skill]


def merged(base: DiffusionPolicy, skills: list[Skill], alpha: list[float]) -> DiffusionPolicy:
    """A plain policy whose weights are `W_0 + sum of alpha_i s_i B_i A_i`."""
    plain = copy.deepcopy(base)
    for skill, weight in zip(skills, alpha, strict=True):
        for address, factors in skill.factors.items():
            layer = plain.acting.get_submodule(address)
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight += weight * factors.scaling * factors.B @ factors.A
    return plain


@pytest.fixture
def composed(
    make_policy: MakePolicy, make_skill: MakeSkill
) -> tuple[ComposedPolicy, DiffusionPolicy, list[Skill]]:
    """Two skills of different rank whose alpha depends on the state, on a base that scales what it sees."""
    base, skills = make_policy(num_candidates=2), [make_skill("walk"), make_skill("run", 3)]
    base.scale.fit(torch.randn(50, 3) * 3 + 1)
    policy = ComposedPolicy(base, skills, ALPHA.config("context", hidden=[8]))
    last = policy.alpha.network[-1]  # type: ignore[union-attr]
    nn.init.normal_(last.weight)
    return policy.eval(), base, skills


def states(rows: int = 5) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2)) * 3


def test_actions_are_those_of_weights_merged_for_each_state(
    composed: tuple[ComposedPolicy, DiffusionPolicy, list[Skill]],
) -> None:
    policy, base, skills = composed
    seen = states()
    noise = policy.draw(5, 4, torch.Generator().manual_seed(0))
    found = policy.candidates(seen, noise)
    alpha = policy.weigh(seen)
    assert alpha.std(0).min() > 0.1, "else this shows nothing"
    for state in range(5):
        plain = merged(base, skills, alpha[state].tolist())
        expected = plain.candidates(seen[state : state + 1], noise[:, state : state + 1])
        torch.testing.assert_close(found[state : state + 1], expected, atol=2e-5, rtol=0)
    assert not torch.allclose(found, base.candidates(seen, noise), atol=1e-2)
    torch.testing.assert_close(policy.act(seen, noise=noise), found[:, 0])
    assert policy.act(seen).shape == (5, 2)
    assert policy.names == ("walk", "run")


@pytest.mark.parametrize("number", [1, 5])
def test_skills_may_adapt_different_layers(
    make_policy: MakePolicy, make_skill: MakeSkill, number: int
) -> None:
    base = make_policy()
    whole = [make_skill("walk"), make_skill("run"), make_skill("fly")]
    addresses = list(whole[0].factors)
    skills = [
        dataclasses.replace(skill, factors={a: skill.factors[a] for a in addresses[first::2]})
        for skill, first in zip(whole, (0, 1, 0), strict=True)
    ]
    policy = ComposedPolicy(base, skills, ALPHA.config("fixed", values=[1.0, -0.5, 2.0]))
    seen = states(number)
    noise = policy.draw(number, 3, torch.Generator().manual_seed(0))
    expected = merged(base, skills, [1.0, -0.5, 2.0]).candidates(seen, noise)
    torch.testing.assert_close(policy.act(seen, noise=noise), expected[:, 0], atol=2e-5, rtol=0)
    assert not torch.allclose(expected, base.candidates(seen, noise), atol=1e-2)


def test_alpha_is_asked_once_for_each_state(
    composed: tuple[ComposedPolicy, DiffusionPolicy, list[Skill]],
) -> None:
    policy, _, _ = composed
    asked = []
    policy.alpha.register_forward_hook(lambda module, args, output: asked.append(tuple(output.gates.shape)))
    policy.act(states(3), num_candidates=8)
    assert asked == [(3, 2)]


@pytest.mark.parametrize("network", [SMALL, ResidualNetwork.Config()])
def test_with_alpha_0_the_base_acts_bit_for_bit(
    network: PlainNetwork.Config | ResidualNetwork.Config, make_policy: MakePolicy
) -> None:
    base = make_policy(network=network, diffusion=DiffusionConfig(clip=0.0))  # nothing hides a difference
    skills = [drawn_skill(base, name, rank) for name, rank in (("walk", 2), ("run", 3))]
    for rows, number in ((5, 1), (5, 3), (1, 1)):
        seen, noise = states(rows), base.draw(rows, number, torch.Generator().manual_seed(0))
        expected = base.act(seen, noise=noise)
        for alpha in (ALPHA.config("fixed", values=[0.0, 0.0]), ALPHA.config("context", start=[0.0, 0.0])):
            policy = ComposedPolicy(base, skills, alpha)
            assert torch.equal(policy.act(seen, noise=noise), expected)
            with torch.enable_grad():  # as it learns
                assert torch.equal(policy.candidates(seen, noise)[:, 0], expected)
        fully = ComposedPolicy(base, skills, ALPHA.config("fixed", values=[1.0, 1.0]))
        assert not torch.allclose(fully.act(seen, noise=noise), expected, atol=1e-3), (
            "else this shows nothing"
        )


def drawn_skill(base: DiffusionPolicy, name: str, rank: int) -> Skill:
    """A skill that changes every layer of a policy."""
    dice = torch.Generator().manual_seed(rank)
    factors = {
        address: Factors(
            A=torch.randn(rank, target.in_features, generator=dice) * target.in_features**-0.5,
            B=torch.randn(target.out_features, rank, generator=dice) * 0.3,
            scaling=1.0,
        )
        for address, target in all_targets(base.acting).items()
    }
    return Skill(name=name, factors=factors)


def test_the_base_stays_as_it_was(make_policy: MakePolicy, make_skill: MakeSkill) -> None:
    base = make_policy()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    flags = [(p.requires_grad, m.training) for m in base.modules() for p in m.parameters(recurse=False)]
    policy = ComposedPolicy(base, [make_skill("walk")], ALPHA.config("context", hidden=[4]))
    policy.train()
    noise = policy.draw(5, 1)
    policy.candidates(states(), noise).sum().backward()
    trained = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(name.startswith("alpha.") for name in trained)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trained
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert flags == [
        (p.requires_grad, m.training) for m in base.modules() for p in m.parameters(recurse=False)
    ]
    assert all(p.grad is None for p in base.parameters())
    # It is the base's own memory, not a copy.
    own = {p.data_ptr() for p in base.acting.parameters()}
    assert own <= {p.data_ptr() for p in policy.network.parameters()}


@pytest.mark.parametrize("kind", WEIGHERS)
def test_what_is_saved_acts_the_same(
    tmp_path: Path,
    make_policy: MakePolicy,
    make_skill: MakeSkill,
    make_critics: Callable[..., Critics],
    kind: str,
    weigher: Callable[[str], Any],
) -> None:
    base = make_policy(num_candidates=3, pick="min-qc")
    base.attach(make_critics("safety"))
    base.scale.fit(torch.randn(50, 3) * 3 + 1)
    torch.manual_seed(0)
    skills = [make_skill("walk"), make_skill("run.2", 3)]
    policy = ComposedPolicy(base, skills, weigher(kind)).eval()
    with torch.no_grad():
        for parameter in policy.alpha.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save(policy, tmp_path / "policy")
    again = load(tmp_path / "policy")
    assert isinstance(again, ComposedPolicy)
    seen, dice = states(), torch.Generator
    assert torch.equal(
        policy.act(seen, generator=dice().manual_seed(1)), again.act(seen, generator=dice().manual_seed(1))
    )
    assert again.names == ("walk", "run.2")
    assert torch.equal(again.weigh(seen), policy.weigh(seen))
    # What is saved needs neither base nor library, and has the base in it, once.
    size = sum(p.numel() for p in base.acting.parameters())
    factors = sum(skill.num_params() for skill in skills)
    assert sum(p.numel() for p in again.network.parameters()) == size + factors


def test_composing_leaves_the_files_of_skills_alone(
    tmp_path: Path, make_policy: MakePolicy, make_skill: MakeSkill
) -> None:
    base, library = make_policy(), Library(tmp_path / "skills")
    for name in ("walk", "run"):
        library.add(make_skill(name), base=base.acting, scale_convention="raw")
    before = {path: path.read_bytes() for path in sorted(library.path.rglob("*")) if path.is_file()}
    policy = ComposedPolicy(base, library.load_all(["walk", "run"], base.acting), ALPHA.config())
    policy.act(states())
    save(policy, tmp_path / "policy")
    load(tmp_path / "policy").act(states())
    assert before == {path: path.read_bytes() for path in sorted(library.path.rglob("*")) if path.is_file()}
    assert len(before) > 4


def test_what_does_not_fit_is_refused(make_policy: MakePolicy, make_skill: MakeSkill) -> None:
    base, alpha = make_policy(), ALPHA.config()
    with pytest.raises(SkillError, match="needs at least one skill"):
        ComposedPolicy(base, [], alpha)
    with pytest.raises(SkillError, match="two skills of the name 'walk'"):
        ComposedPolicy(base, [make_skill("walk"), make_skill("walk")], alpha)
    with pytest.raises(RecipeError, match="3 weights for 1 parts"):
        ComposedPolicy(base, [make_skill("walk")], ALPHA.config("context", start=[1.0, 0.0, 0.0]))
