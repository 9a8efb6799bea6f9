"""The loss and the weights, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.policy import (
    WEIGHTS,
    Critics,
    CriticsConfig,
    Diffusion,
    DiffusionConfig,
    RewardCriticConfig,
    SafetyCriticConfig,
    objective,
)
from expertise.policy.objective import advantage_weights, noise_loss, safety_weights


def test_the_loss_sums_over_components_and_averages_over_rows() -> None:
    diffusion = Diffusion(DiffusionConfig())
    actions, noise, times = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 4, 0])
    asked = []

    def predict(x: Tensor, when: Tensor) -> Tensor:
        asked.append((x, when))
        return x * 0.5

    noisy = diffusion.add_noise(actions, noise, times)
    errors = [float((noisy[i] * 0.5 - noise[i]).square().sum()) for i in range(6)]
    found = noise_loss(diffusion, predict, actions, times, noise)
    assert float(found) == pytest.approx(sum(errors) / 6)
    torch.testing.assert_close(asked[0][0], noisy)
    assert torch.equal(asked[0][1], times)
    weights = torch.tensor([0.0, 1.0, 2.0, 100.0, 0.5, 0.0])
    weighted = noise_loss(diffusion, predict, actions, times, noise, weights)
    expected = sum(w * e for w, e in zip(weights.tolist(), errors, strict=True)) / 6
    assert float(weighted) == pytest.approx(expected)


def test_the_weights_are_the_papers_and_the_release_s() -> None:
    q, v = torch.tensor([0.0, 1.0, -2.0, 50.0, 1e4]), torch.tensor([0.0, 0.5, 0.0, 0.0, 0.0])
    assert advantage_weights(q, v, 3.0, 100.0).tolist() == pytest.approx(
        [1.0, math.exp(1.5), math.exp(-6.0), 100.0, 100.0]
    )
    found = safety_weights(-q, -v, 2.0, 150.0).tolist()
    # What is exactly as safe as its state counts nothing: 1[Q_c < V_c].
    assert found == pytest.approx([0.0, math.exp(1.0), 0.0, 150.0, 150.0])


def test_the_defaults_are_the_release_s() -> None:
    advantage, safety = WEIGHTS["advantage"].Config(), WEIGHTS["safety"].Config()
    assert (advantage.temperature, advantage.limit) == (1.0, 100.0)
    assert (safety.temperature, safety.limit) == (1.0, 150.0)


@pytest.fixture
def critics() -> Critics:
    torch.manual_seed(0)
    config = CriticsConfig(
        reward=RewardCriticConfig(hidden=[8], value_norm=False),
        safety=SafetyCriticConfig(hidden=[8], value_norm=False),
    )
    critics = Critics(config, 3, 2)
    assert critics.safety is not None
    with torch.no_grad():  # so that some actions are safer than their state and some are not
        critics.safety.v[-1][-1].bias.fill_(2.0)
    return critics


@pytest.mark.parametrize(("name", "critic"), [("advantage", "reward"), ("safety", "safety")])
def test_weights_of_a_data_set_come_from_its_critic(
    critics: Critics, monkeypatch: pytest.MonkeyPatch, name: str, critic: str
) -> None:
    monkeypatch.setattr(objective, "_PIECE", 4)
    seen, done = torch.randn(41, 3), torch.randn(41, 2)
    config = WEIGHTS[name].Config(temperature=1.0, limit=30.0)
    weigh = {"advantage": advantage_weights, "safety": safety_weights}[name]
    expected = weigh(critics.q(critic, seen, done), critics.v(critic, seen), 1.0, 30.0)
    found = config.of(critics, seen, done)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    inside = (found > 0) & (found < 30)
    assert 5 < int(inside.sum()) <= 41, "else this shows nothing"


def test_weights_without_their_critic_are_refused(critics: Critics) -> None:
    seen, done = torch.randn(2, 3), torch.randn(2, 2)
    assert WEIGHTS["uniform"].Config().of(None, seen, done) is None
    with pytest.raises(RecipeError, match="need a critic of safety, and there are no critics"):
        WEIGHTS["safety"].Config().of(None, seen, done)
    alone = Critics(CriticsConfig(reward=RewardCriticConfig(hidden=[4])), 3, 2)
    with pytest.raises(RecipeError, match="a critic of safety is needed, and there is none"):
        WEIGHTS["safety"].Config().of(alone, seen, done)
