"""A skill that learns on a base: where it starts, what of it moves, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expertise.errors import SkillError
from expertise.policy import POLICY_OPTIMIZER, DiffusionPolicy, PolicyTask, load
from expertise.policy.alpha import ALPHA
from expertise.policy.compose import ComposedPolicy
from expertise.policy.growing import FullConfig, GrowingPolicy, GrowthConfig
from expertise.policy.network import ResidualNetwork
from expertise.runs import loop
from expertise.runs.config import TrainConfig
from expertise.skills.skill import Skill

MakePolicy = Callable[..., DiffusionPolicy]
KINDS = {"low rank": GrowthConfig(rank=2, multiplier=4.0), "full": GrowthConfig(full=FullConfig())}
CONFIG = TrainConfig(steps=5, batch_size=16, log_every=5, device="cpu")


def demonstrations(rows: int = 60) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    seen = torch.randn(rows, 3)
    return seen, torch.stack([seen[:, 0], -seen[:, 1]], dim=1).tanh()


def grow(policy: GrowingPolicy, run: Path, config: TrainConfig = CONFIG) -> None:
    loop.train(run, PolicyTask(policy, *demonstrations(), config), config, POLICY_OPTIMIZER)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_base_and_only_its_own_factors_move(
    tmp_path: Path, make_policy: MakePolicy, kind: str
) -> None:
    base, config = make_policy(), KINDS[kind]
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    policy = GrowingPolicy(base, config.new(base.acting, "walk", 0), config)
    seen, noise = demonstrations()[0], base.draw(60, 1)
    torch.testing.assert_close(policy.act(seen, noise=noise), base.act(seen, noise=noise))
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("learning.") for name in trained)
    grow(policy, tmp_path / "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert not torch.allclose(policy.act(seen, noise=noise), base.act(seen, noise=noise), atol=1e-4)


def test_it_moves_whole_and_has_dropout_only_if_asked(make_policy: MakePolicy) -> None:
    network = ResidualNetwork.Config(hidden=16, num_blocks=1, time_features=4, dropout=0.5)
    for wanted in (False, True):
        base, config = make_policy(network=network), GrowthConfig(rank=2, dropout=wanted)
        policy = GrowingPolicy(base, config.new(base.acting, "walk", 0), config).double().train()
        seen = torch.randn(4, 3, dtype=torch.float64)
        predict = policy.predictor(seen, acting=False)
        actions, times = torch.randn(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.int64)
        one, two = predict(actions, times), predict(actions, times)
        assert one.dtype == torch.float64
        assert torch.equal(one, two) is not wanted
        policy.eval()
        assert torch.equal(predict(actions, times), predict(actions, times))
        one.sum().backward()
        assert all(parameter.grad is not None for parameter in policy.learning)


def test_a_new_skill_is_lecun_s_and_raw(make_policy: MakePolicy) -> None:
    base = make_policy()
    skill = GrowthConfig().new(base.acting, "walk", 3)
    # Every linear layer, first and last included.
    assert list(skill.factors) == ["layers.0", "layers.3", "layers.6"]
    for factors in skill.factors.values():
        assert factors.rank == 8
        assert factors.scaling == 16.0
        assert not factors.B.any()
    inner = GrowthConfig(rank=64).new(base.acting, "walk", 3).factors["layers.3"]
    assert float(inner.A.std()) == pytest.approx(inner.in_features**-0.5, rel=0.1)
    again = GrowthConfig().new(base.acting, "walk", 3)
    other = GrowthConfig().new(base.acting, "walk", 4)
    assert torch.equal(again.factors["layers.3"].A, skill.factors["layers.3"].A)
    assert not torch.equal(other.factors["layers.3"].A, skill.factors["layers.3"].A)


def test_a_full_skill_is_a_matrix_of_any_rank(tmp_path: Path, make_policy: MakePolicy) -> None:
    base, config = make_policy(), KINDS["full"]
    policy = GrowingPolicy(base, config.new(base.acting, "walk", 0), config)
    grow(policy, tmp_path / "run")
    factors = policy.skill().factors["layers.3"]
    assert torch.equal(factors.A, torch.eye(16)), "its inputs go in as they are"
    assert int(torch.linalg.matrix_rank(factors.delta())) > 8
    random = GrowthConfig(full=FullConfig(start=1.0)).new(base.acting, "walk", 0)
    assert float(random.factors["layers.3"].delta().std()) == pytest.approx(0.25, rel=0.2)


def test_what_acts_is_the_mean_of_the_factors_over_the_steps(make_policy: MakePolicy) -> None:
    base = make_policy()
    config = GrowthConfig(rank=2, ema_rate=0.25, ema_warmup=0)
    policy = GrowingPolicy(base, config.new(base.acting, "walk", 0), config)
    expected = policy.learning[1].detach().clone()
    for step in range(3):
        with torch.no_grad():
            policy.learning[1].add_(torch.randn_like(policy.learning[1]))
        policy.update_acting(step)
        expected = expected + 0.25 * (policy.learning[1].detach() - expected)
    torch.testing.assert_close(policy.skill().factors["layers.0"].B, expected.t())


def test_its_skill_alone_acts_as_it_does_and_it_is_loaded_as_it_was(
    tmp_path: Path, make_policy: MakePolicy, make_skill: Callable[..., Skill]
) -> None:
    base, config = make_policy(), KINDS["low rank"]
    base.scale.fit(torch.randn(50, 3) * 3)
    beside = make_skill("stand")
    policy = GrowingPolicy(base, config.new(base.acting, "walk", 0), config, [beside], [0.5])
    policy.eval()
    grow(policy, tmp_path / "run")
    seen, noise = demonstrations()[0][:6], base.draw(6, 2)
    found = policy.act(seen, noise=noise)
    both = ComposedPolicy(base, [beside, policy.skill()], ALPHA.config("fixed", values=[0.5, 1.0]))
    torch.testing.assert_close(both.act(seen, noise=noise), found)
    again = load(tmp_path / "run")
    assert isinstance(again, GrowingPolicy)
    assert torch.equal(again.act(seen, noise=noise), found)
    assert torch.equal(again.skill().factors["layers.0"].B, policy.skill().factors["layers.0"].B)
    # What was beside it has not moved.
    trained = policy.state_dict()
    assert any(torch.equal(tensor, beside.factors["layers.0"].A) for tensor in trained.values())


def test_a_weight_for_each_skill_beside(make_policy: MakePolicy, make_skill: Callable[..., Skill]) -> None:
    base, config = make_policy(), KINDS["low rank"]
    new = config.new(base.acting, "walk", 0)
    with pytest.raises(SkillError, match="1 skills beside need as many weights, not 2"):
        GrowingPolicy(base, new, config, [make_skill("stand")], [1.0, 2.0])
    with pytest.raises(SkillError, match=r"is called 'layer.9'"):
        GrowthConfig(targets=["layer.9"]).new(base.acting, "walk", 0)
