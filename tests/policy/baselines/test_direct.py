"""BC and IQL without diffusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expertise.errors import RecipeError
from expertise.policy import POLICY_OPTIMIZER, PolicyTask, load, save
from expertise.policy.baselines.direct import DirectConfig, Likelihood
from expertise.runs import loop
from expertise.runs.config import TrainConfig


def test_the_first_candidate_is_the_mean_and_the_others_lie_around_it() -> None:
    torch.manual_seed(0)
    policy = DirectConfig(hidden=[8]).build(3, 2)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-2.0, -3.0]))
    seen = torch.randn(5, 3)
    mean = policy.network(policy.scale(seen)).detach()
    noise = policy.draw(5, 4)
    assert noise.shape == (1, 5, 4, 2)
    found = policy.candidates(seen, noise).detach()
    assert torch.equal(found[:, 0], mean)
    expected = mean[:, None] + noise[0] * torch.tensor([-2.0, -3.0]).exp()
    torch.testing.assert_close(found[:, 1:], expected[:, 1:].clamp(-1, 1))
    assert torch.equal(policy.act(seen), mean), "so one candidate draws nothing"


def test_its_error_is_the_density_s_logarithm() -> None:
    torch.manual_seed(0)
    policy = DirectConfig(hidden=[8]).build(3, 2)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([0.3, -0.7]))
    seen, done = torch.randn(5, 3), torch.rand(5, 2)
    normal = torch.distributions.Normal(policy.network(policy.scale(seen)), policy.log_std.exp())
    found = Likelihood().errors(policy, seen, done, (), acting=False)
    torch.testing.assert_close(found, -normal.log_prob(done).sum(1))


def test_it_learns_what_was_done_where_that_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    seen = torch.randn(512, 3)
    side = torch.where(torch.arange(512) % 2 == 0, 0.6, -0.6)
    done = torch.stack([side, seen[:, 0].tanh() * 0.5], dim=1)
    policy = DirectConfig(hidden=[32]).build_for(seen, done)
    config = TrainConfig(steps=300, batch_size=128, device="cpu")
    optimizer = POLICY_OPTIMIZER.__class__(learning_rate=1e-2, schedule="constant", clip=0.0)
    task = PolicyTask(policy, seen, done, config, weights=(side > 0).float(), objective=Likelihood())
    loop.train(tmp_path / "run", task, config, optimizer)
    acted = load(tmp_path / "run").act(seen)
    assert float((acted[:, 0] - 0.6).abs().mean()) < 0.05
    assert float((acted[:, 1] - done[:, 1]).abs().mean()) < 0.05
    save(policy, tmp_path / "policy")
    assert torch.equal(load(tmp_path / "policy").act(seen), acted)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown pick 'frist'"):
        DirectConfig(pick="frist")
    with pytest.raises(RecipeError, match="positive widths"):
        DirectConfig(hidden=[8, 0])
