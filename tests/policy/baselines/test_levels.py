"""Composition in noise and in actions against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.policy import Critics, DiffusionConfig, DiffusionPolicy, PolicyTask, load, save
from expertise.policy.acting import Policy
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.direct import DirectConfig
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.compose import ComposedPolicy
from expertise.policy.objective import ActionError
from expertise.runs.config import TrainConfig
from expertise.skills.skill import Skill

MakePolicy = Callable[..., DiffusionPolicy]
LEVELS = {"noise": NoiseComposition, "actions": ActionComposition}


@pytest.fixture
def members(make_policy: MakePolicy, make_skill: Callable[..., Skill]) -> list[DiffusionPolicy]:
    """A base, a policy that sees observations on another scale, and the base with a skill."""
    base = make_policy(num_candidates=2)
    base.scale.fit(torch.randn(50, 3) * 2)
    torch.manual_seed(7)
    other = DiffusionPolicy(base.config, base.config.network.build(3, 2)).eval()
    other.scale.fit(torch.randn(50, 3) * 4 + 1)
    return [base, other, ComposedPolicy(base, [make_skill("walk")], ALPHA.config("fixed", values=[1.0]))]  # type: ignore[list-item]


def build(level: str, members: list[DiffusionPolicy], **alpha: object) -> Policy:
    """With weights that depend on the state."""
    torch.manual_seed(3)
    names = ["base", "scratch", "walk"][: len(members)]
    policy = LEVELS[level](members, names, ALPHA.config("context", hidden=[8], **alpha))
    nn.init.normal_(policy.alpha.network[-1].weight, std=0.3)
    return policy.eval()


def states(rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2)) * 2


def test_noise_is_weighed_up_at_each_step(members: list[DiffusionPolicy]) -> None:
    policy = build("noise", members)
    seen = states()
    noise = policy.draw(4, 3, torch.Generator().manual_seed(0))
    alpha = policy.weigh(seen)
    assert alpha is not None
    assert alpha.std(0).min() > 0.05, "else this shows nothing"
    found = policy.candidates(seen, noise)
    for state in range(4):
        for number in range(3):
            predict = [m.predictor(seen[state : state + 1], acting=True) for m in members]

            def together(x: Tensor, t: Tensor, state: int = state, predict: list = predict) -> Tensor:
                return sum(alpha[state, i] * one(x, t) for i, one in enumerate(predict))  # type: ignore[return-value]

            expected = members[0].diffusion.sample(together, noise[:, state, number][:, None])
            torch.testing.assert_close(found[state, number], expected[0], atol=1e-5, rtol=0)


def test_actions_are_weighed_up_at_the_end_and_cut(members: list[DiffusionPolicy]) -> None:
    policy = build("actions", members, start=[1.5, -0.5, 0.5])
    seen = states()
    noise = policy.draw(4, 3, torch.Generator().manual_seed(0))
    alpha = policy.weigh(seen)
    assert alpha is not None
    each = [member.candidates(seen, noise) for member in members]
    expected = sum(alpha[:, i, None, None] * actions for i, actions in enumerate(each))
    assert float(expected.detach().abs().max()) > 1, "else nothing is cut"  # type: ignore[union-attr]
    found = policy.candidates(seen, noise)
    torch.testing.assert_close(found, expected.clamp(-1, 1), atol=1e-6, rtol=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("level", LEVELS)
def test_one_member_alone_acts_as_it_does(level: str, members: list[DiffusionPolicy]) -> None:
    seen = states()
    noise = members[0].draw(4, 2)
    for index, member in enumerate(members):
        chosen = [float(i == index) for i in range(3)]
        policy = LEVELS[level](members, ["a", "b", "c"], ALPHA.config("fixed", values=chosen))
        torch.testing.assert_close(policy.act(seen, noise=noise), member.act(seen, noise=noise))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", ["noise", "action"])
def test_only_alpha_learns_and_it_finds_the_member_that_did_it(
    level: str, loss: str, members: list[DiffusionPolicy]
) -> None:
    if (level, loss) == ("actions", "noise"):
        return  # there is no noise to learn by
    before = [{k: v.clone() for k, v in member.state_dict().items()} for member in members]
    policy = LEVELS[level](members, ["a", "b", "c"], ALPHA.config("context", hidden=[8]))
    seen = states(64)
    done = members[1].act(seen, num_candidates=1, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=1, batch_size=64, device="cpu")
    task = PolicyTask(policy, seen, done, config, objective=ActionError() if loss == "action" else None)
    learns = [p for p in policy.parameters() if p.requires_grad]
    assert {id(p) for p in learns} == {id(p) for p in policy.alpha.parameters()}
    optimizer = torch.optim.Adam(learns, lr=0.02)
    first = task.evaluate(lambda: None)
    for step in range(60):
        optimizer.zero_grad()
        task.losses(step, 0, False).total.backward()
        optimizer.step()
    assert task.evaluate(lambda: None)[f"{loss}_error"] < first[f"{loss}_error"]
    with torch.no_grad():
        alpha = policy.weigh(seen)
    assert alpha is not None
    assert int(alpha.mean(0).argmax()) == 1
    for member, kept in zip(members, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in member.state_dict().items())
        assert any(p.requires_grad for p in member.parameters()) == (member is not members[2]), "as it was"


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_saved_acts_the_same(
    tmp_path: Path, level: str, members: list[DiffusionPolicy], make_critics: Callable[..., Critics]
) -> None:
    members[0].attach(make_critics("safety"))
    policy = build(level, members)
    assert policy.critics is not None, "those of the first member"
    save(policy, tmp_path / "policy")
    again = load(tmp_path / "policy")
    assert type(again) is type(policy)
    assert again.names == ("base", "scratch", "walk")
    seen, noise = states(), policy.draw(4, 3)
    assert torch.equal(
        again.act(seen, noise=noise, pick="min-qc"), policy.act(seen, noise=noise, pick="min-qc")
    )


def test_actions_may_be_composed_of_policies_without_diffusion() -> None:
    torch.manual_seed(0)
    both = [DirectConfig(hidden=[8]).build(3, 2) for _ in range(2)]
    policy = ActionComposition(both, ["a", "b"], ALPHA.config("fixed", values=[0.5, 0.5]))
    seen, noise = states(), policy.draw(4)
    expected = 0.5 * both[0].act(seen, noise=noise) + 0.5 * both[1].act(seen, noise=noise)
    torch.testing.assert_close(policy.act(seen, noise=noise), expected)


def test_policies_that_do_not_go_together_are_refused(make_policy: MakePolicy) -> None:
    base, alpha = make_policy(), ALPHA.config()
    with pytest.raises(RecipeError, match="at least one policy"):
        NoiseComposition([], [], alpha)
    with pytest.raises(RecipeError, match=r"2 policies need as many different names, not \['a', 'a'\]"):
        ActionComposition([base, base], ["a", "a"], alpha)
    with pytest.raises(RecipeError, match="observation_dim 3 and 4 cannot be composed: a, b"):
        NoiseComposition([base, base.config.build(4, 2)], ["a", "b"], alpha)
    with pytest.raises(RecipeError, match="num_sheets 5 and 1"):
        ActionComposition([base, DirectConfig(hidden=[8]).build(3, 2)], ["a", "b"], alpha)
    other = make_policy(diffusion=DiffusionConfig(beta_max=5.0))
    with pytest.raises(RecipeError, match="different diffusion processes"):
        NoiseComposition([base, other], ["a", "b"], alpha)
