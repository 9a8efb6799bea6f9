"""The critics against values that are known: a small decision process, and a line with a cliff at its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import DataError, RecipeError
from expertise.policy import (
    Batch,
    Critics,
    CriticsConfig,
    CriticTask,
    RewardCriticConfig,
    SafetyCriticConfig,
)
from expertise.policy.critic import expectile_loss
from expertise.runs import loop
from expertise.runs.config import TrainConfig
from expertise.runs.optim import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-2, schedule="cosine", final_ratio=0.02, weight_decay=0.0, beta2=0.99, clip=0.0
)


def learn(config: CriticsConfig, data: Batch, run: Path, steps: int) -> Critics:
    torch.manual_seed(0)
    critics = Critics(config, data.observations.shape[1], data.actions.shape[1])
    train = TrainConfig(steps=steps, batch_size=64, log_every=500, device="cpu")
    loop.train(run, CriticTask(critics, data, train), train, OPTIMIZER)
    return critics


def tabular(num_states: int, num_actions: int, table: list[tuple[int, int, float, int, bool]]) -> Batch:
    """Transitions (state, action, reward or cost, next state, end) of one-hot states and actions."""
    state, action, number, following, end = (torch.tensor(column) for column in zip(*table, strict=True))
    return Batch(
        F.one_hot(state, num_states).float(),
        F.one_hot(action, num_actions).float(),
        number.float(),
        F.one_hot(following, num_states).float(),
        end.float(),
        costs=number.float(),
    )


# Reward. From each of states 0, 1, 2 action 1 goes on and action 0 ends with a small reward at once; from
# state 3 the reward is 10. There is an action 2, of which the data holds nothing: V must not ask about it.
CHAIN = [
    (0, 0, 1.0, 0, True),
    (0, 1, 0.0, 1, False),
    (1, 0, 2.0, 0, True),
    (1, 1, 0.0, 2, False),
    (2, 0, 9.5, 0, True),
    (2, 1, -1.0, 3, False),
    (3, 0, 0.0, 0, True),
    (3, 1, 10.0, 0, True),
]
GAMMA = 0.9


def expectile_of(values: list[float], expectile: float) -> float:
    """The number whose weighted squared distance from the values is least, by bisection."""
    low, high = min(values), max(values)
    for _ in range(200):
        middle = (low + high) / 2
        slope = sum((expectile if x > middle else 1 - expectile) * (x - middle) for x in values)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


def fixed_point(expectile: float) -> list[float]:
    """V of the chain: each state's expectile over the actions that the data holds, every one as often."""
    v = [0.0] * 4
    for _ in range(200):
        seen = [(s, r + GAMMA * v[t] * (not end)) for s, _, r, t, end in CHAIN]
        v = [expectile_of([x for s, x in seen if s == state], expectile) for state in range(4)]
    return v


def best() -> list[float]:
    """Optimal V within the data: 10 in state 3, max(9.5, -1 + 0.9 * 10) in 2, then one discount each."""
    return [GAMMA**2 * 9.5, GAMMA * 9.5, 9.5, 10.0]


def test_the_closed_form_is_the_limit_of_the_expectiles() -> None:
    assert fixed_point(0.99999) == pytest.approx(best(), abs=1e-3)
    assert fixed_point(0.5) != pytest.approx(best(), abs=1.0)


@pytest.mark.parametrize("expectile", [0.7, 0.98])
def test_v_of_iql_is_the_expectile_and_for_1_the_optimal_value(tmp_path: Path, expectile: float) -> None:
    config = CriticsConfig(
        reward=RewardCriticConfig(
            discount=GAMMA, expectile=expectile, hidden=[32], target_rate=0.2, value_norm=False
        ),
        normalize=False,
    )
    critics = learn(config, tabular(4, 3, CHAIN), tmp_path, 700)
    found = critics.v("reward", torch.eye(4)).tolist()
    assert found == pytest.approx(fixed_point(expectile), abs=0.15)
    if expectile > 0.9:
        assert found == pytest.approx(best(), abs=0.4)
        data = tabular(4, 3, CHAIN)
        q = critics.q("reward", data.observations, data.actions)
        wanted = [r + (0 if end else GAMMA * best()[t]) for _, _, r, t, end in CHAIN]
        assert q.tolist() == pytest.approx(wanted, abs=0.4)


# Safety. Places 0 to 6 on a line, a cliff at 6 where every move costs. At 0 to 3 one may go either way; from
# 4 on a current carries everything to the right.
CLIFF, LAST_FREE = 6, 3


def line() -> list[tuple[int, int, float, int, bool]]:
    table = []
    for place in range(CLIFF + 1):
        for action, move in ((0, -1), (1, 1)):
            to = min(max(place + (move if place <= LAST_FREE else 1), 0), CLIFF)
            table.append((place, action, float(place == CLIFF), to, False))
    return table


def reachability(gamma: float) -> list[float]:
    """max over time of h, discounted: h = 25 from the cliff on, so 26 gamma^d - 1 at d steps before it.

    One step gives (1 - gamma) (-1) + gamma max(-1, V'), and V' = 25 at the cliff. Where one can stay away
    for ever it is -1.
    """
    return [26 * gamma ** (CLIFF - place) - 1 if place > LAST_FREE else -1.0 for place in range(CLIFF + 1)]


@pytest.mark.parametrize("value_norm", [False, True])
def test_the_safety_pair_approaches_the_reachability_cost(tmp_path: Path, value_norm: bool) -> None:
    gamma, table = 0.8, line()
    config = CriticsConfig(
        safety=SafetyCriticConfig(
            discount=gamma, expectile=0.99, hidden=[64], target_rate=0.2, value_norm=value_norm
        ),
        normalize=False,
    )
    data = tabular(CLIFF + 1, 2, table)
    critics = learn(config, data, tmp_path, 900)
    expected = reachability(gamma)
    found = critics.v("safety", torch.eye(CLIFF + 1)).tolist()
    assert found == pytest.approx(expected, abs=0.5)
    q = critics.q("safety", data.observations, data.actions).tolist()
    wanted = [
        25.0 if cost else (1 - gamma) * -1 + gamma * max(-1.0, expected[to]) for _, _, cost, to, _ in table
    ]
    assert q == pytest.approx(wanted, abs=0.6)
    # The last free place: going right is what cannot be undone, and the pair says so.
    assert q[2 * LAST_FREE] == pytest.approx(-1.0, abs=0.6)
    assert q[2 * LAST_FREE + 1] == pytest.approx(26 * gamma**3 - 1, abs=0.6)


def targets(critic: str, batch: Batch, config: CriticsConfig) -> tuple[Critics, Tensor]:
    """Critics with fixed weights, and what their Q is drawn to, found from the loss's gradient."""
    torch.manual_seed(0)
    critics = Critics(config, batch.observations.shape[1], batch.actions.shape[1])
    part = critics.each()[critic]
    assert part.q is not None
    losses = critics.losses(batch)[f"{critic}_q_loss"] * len(batch)
    joined = torch.cat([batch.observations, batch.actions], dim=1)
    with torch.no_grad():
        qs = torch.stack([network(joined).squeeze(1) for network in part.q])  # type: ignore[union-attr]
    # Mean over networks of (q - wanted)²: its derivative by the last bias of network 0 is that of q - wanted.
    bias = part.q[0][-1].bias  # type: ignore[index]
    (slope,) = torch.autograd.grad(losses, bias, retain_graph=True)
    return critics, qs[0].sum() - slope.sum() * len(part.q) / 2  # type: ignore[arg-type]


def random_batch(rows: int, costs: bool = True) -> Batch:
    torch.manual_seed(1)
    ends = (torch.arange(rows) < 2).float()
    cost = (torch.arange(rows) % 2).float() * 0.3
    return Batch(
        torch.randn(rows, 3),
        torch.rand(rows, 2) * 2 - 1,
        torch.randn(rows),
        torch.randn(rows, 3),
        ends,
        cost if costs else None,
    )


@pytest.mark.parametrize("row", range(4))
def test_what_q_is_drawn_to(row: int) -> None:
    """One row at a time: ends (0 and 1) and no ends, costs (1 and 3) and none."""
    batch = random_batch(4).take(torch.tensor([row]))
    # V_c of what follows is above -1 there, so that an end is not what it would be anyway.
    batch = dataclasses.replace(batch, next_observations=torch.full((1, 3), 0.5))
    config = CriticsConfig(
        reward=RewardCriticConfig(hidden=[8], value_norm=False),
        safety=SafetyCriticConfig(hidden=[8], value_norm=False),
    )
    critics, wanted = targets("reward", batch, config)
    following = float(critics.v("reward", batch.next_observations))
    expected = float(batch.rewards) + (0 if row < 2 else 0.99 * following)
    assert float(wanted) == pytest.approx(expected, abs=1e-4)
    critics, wanted = targets("safety", batch, config)
    h = 25.0 if row % 2 else -1.0
    following = float(critics.v("safety", batch.next_observations))
    assert following > -0.5
    ahead = 0.01 * h + 0.99 * max(h, following)
    assert float(wanted) == pytest.approx(h if row < 2 else ahead, abs=1e-3)


def test_expectiles_weigh_the_two_sides() -> None:
    assert float(expectile_loss(torch.tensor([2.0]), 0.7)) == pytest.approx(0.7 * 4)
    assert float(expectile_loss(torch.tensor([-2.0]), 0.7)) == pytest.approx(0.3 * 4)
    values = [0.0, 1.0, 5.0]
    v = expectile_of(values, 0.8)
    around = [float(expectile_loss(torch.tensor(values) - (v + d), 0.8)) for d in (-0.01, 0.0, 0.01)]
    assert around[1] == min(around)


def test_ensembles_count_by_their_worst_case() -> None:
    torch.manual_seed(0)
    config = CriticsConfig(reward=RewardCriticConfig(hidden=[8]), safety=SafetyCriticConfig(hidden=[8]))
    critics, batch = Critics(config, 3, 2), random_batch(5)
    joined = torch.cat([batch.observations, batch.actions], dim=1)
    for name, worst in (("reward", torch.minimum), ("safety", torch.maximum)):
        with torch.no_grad():
            a, b = (network(joined).squeeze(1) for network in critics.each()[name].target)
        torch.testing.assert_close(critics.q(name, batch.observations, batch.actions), worst(a, b))
        assert not torch.equal(worst(a, b), a), "both networks count somewhere, or this shows nothing"


def test_the_slow_copy_starts_equal_and_follows_at_its_rate() -> None:
    critics = Critics(CriticsConfig(reward=RewardCriticConfig(hidden=[4], target_rate=0.25)), 3, 2)
    assert critics.reward is not None
    before = [p.clone() for p in critics.reward.target.parameters()]
    for slow, fast in zip(before, critics.reward.q.parameters(), strict=True):
        assert torch.equal(slow, fast)
    with torch.no_grad():
        for parameter in critics.reward.q.parameters():
            parameter.add_(1.0)
    critics.reward.update_target()
    for slow, was in zip(critics.reward.target.parameters(), before, strict=True):
        torch.testing.assert_close(slow, was + 0.25)
        assert not slow.requires_grad


def test_no_critic_learns_from_what_the_other_is_asked() -> None:
    """Q's target carries no gradient to V, nor V's to Q."""
    config = CriticsConfig(reward=RewardCriticConfig(hidden=[8]), safety=SafetyCriticConfig(hidden=[8]))
    critics, batch = Critics(config, 3, 2), random_batch(6)
    losses = critics.losses(batch)
    assert list(losses) == ["reward_v_loss", "reward_q_loss", "safety_v_loss", "safety_q_loss"]
    for name, loss in losses.items():
        critics.zero_grad()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        critic, kind = name.split("_")[:2]
        moved = {key for key, p in critics.named_parameters() if p.grad is not None and bool(p.grad.any())}
        assert moved
        assert all(key.startswith(f"{critic}.{kind}.") for key in moved), moved


def test_critics_see_observations_on_the_data_s_scale() -> None:
    config = CriticsConfig(reward=RewardCriticConfig(hidden=[8], value_norm=False))
    batch = random_batch(50)
    far = dataclasses.replace(
        batch,
        observations=batch.observations * 100 + 7,
        next_observations=batch.next_observations * 100 + 7,
    )
    torch.manual_seed(0)
    near_by = config.build_for(batch)
    torch.manual_seed(0)
    far_off = config.build_for(far)
    for key, loss in near_by.losses(batch).items():
        torch.testing.assert_close(far_off.losses(far)[key], loss, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        far_off.v("reward", far.observations), near_by.v("reward", batch.observations), rtol=1e-3, atol=1e-4
    )
    plain = dataclasses.replace(config, normalize=False).build_for(far)
    assert torch.equal(plain.scale(far.observations), far.observations)


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"give critics\.reward, critics\.safety or both"):
        CriticsConfig()
    with pytest.raises(RecipeError, match=r"reward\.expectile must lie between 0 and 1, not 1"):
        RewardCriticConfig(expectile=1.0)
    with pytest.raises(RecipeError, match=r"must be positive and safety\.safe negative, not 1\.0 and 2"):
        SafetyCriticConfig(violation=1.0, safe=2.0)
    with pytest.raises(RecipeError, match=r"safety\.hidden must be positive, not 2 and \[0\]"):
        SafetyCriticConfig(hidden=[0])
    with pytest.raises(RecipeError, match=r"target_rate must lie within 0 and 1, not 1\.5 and 0\.005"):
        RewardCriticConfig(discount=1.5)
    with pytest.raises(RecipeError, match="leaves nothing of an observation of width 1"):
        Critics(CriticsConfig(reward=RewardCriticConfig()), 1, 1)
    critics = Critics(CriticsConfig(safety=SafetyCriticConfig(hidden=[4])), 3, 2)
    with pytest.raises(DataError, match="need costs, which this data does not have"):
        critics.losses(random_batch(4, costs=False))
    train = TrainConfig(steps=1, batch_size=2)
    with pytest.raises(DataError, match="need costs"):
        CriticTask(critics, random_batch(4, costs=False), train)
    with pytest.raises(DataError, match="need costs"):
        CriticTask(critics, random_batch(4), train, held_out=random_batch(4, costs=False))


def test_the_defaults_are_the_release_s() -> None:
    reward, safety = RewardCriticConfig(), SafetyCriticConfig()
    assert (reward.discount, reward.expectile, reward.target_rate) == (0.99, 0.7, 0.005)
    assert (safety.discount, safety.expectile, safety.target_rate) == (0.99, 0.9, 0.005)
    assert (safety.violation, safety.safe) == (25.0, -1.0)
    assert reward.hidden == safety.hidden == [256, 256]
    assert reward.num_critics == safety.num_critics == 2
