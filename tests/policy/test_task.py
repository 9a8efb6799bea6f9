"""Policies and critics in the training loop: what they learn, that a run goes on exactly, what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expertise.errors import DataError
from expertise.policy import (
    POLICY_OPTIMIZER,
    Batch,
    Critics,
    CriticTask,
    DiffusionPolicy,
    PolicyConfig,
    PolicyTask,
    load,
    load_critics,
    task,
)
from expertise.policy.network import PlainNetwork, ResidualNetwork
from expertise.runs import checkpoint, loop
from expertise.runs.config import TrainConfig
from expertise.runs.metrics import read_lines
from expertise.skills import compose
from expertise.skills.learn import SkillConfig, fresh, learnt

CONFIG = TrainConfig(steps=6, batch_size=8, log_every=2, save_every=2, evaluate_every=3, seed=3, device="cpu")
FAST = dataclasses.replace(POLICY_OPTIMIZER, learning_rate=3e-3)


def demonstrations(rows: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    seen = torch.randn(rows, 3)
    return seen, torch.stack([seen[:, 0], -seen[:, 1]], dim=1).tanh()


def transitions(rows: int = 40) -> Batch:
    seen, done = demonstrations(rows)
    costs = (seen[:, 0] > 1).float()
    return Batch(seen, done, seen[:, 2], seen.roll(1, 0), torch.zeros(rows), costs)


def content(run: Path) -> dict[str, bytes]:
    """All that recipe and seed determine."""
    found = checkpoint.latest(run)
    assert found is not None
    names = ("model.safetensors", "optimizer.safetensors", "random.safetensors")
    files = {name: (found.path / name).read_bytes() for name in names}
    return files | {"metrics": (run / "metrics.jsonl").read_bytes()}


def test_cloning_learns_what_was_done_and_weights_choose_what_counts(tmp_path: Path) -> None:
    """Half of the actions lie at +0.6, half at -0.6. Cloned alike, both come; with weights only one."""
    torch.manual_seed(0)
    seen = torch.randn(512, 2)
    side = torch.tensor([1.0, -1.0]).repeat(256)
    done = torch.stack([0.6 * side, 0.5 * seen[:, 0].tanh()], dim=1)
    found = {}
    for name, weights in (("alike", None), ("up", (side > 0).float())):
        torch.manual_seed(0)
        network = PlainNetwork.Config(hidden=48, num_layers=2, time_features=8)
        policy = PolicyConfig(network=network).build_for(seen, done)
        config = TrainConfig(steps=500, batch_size=128, log_every=300, device="cpu")
        loop.train(tmp_path / name, PolicyTask(policy, seen, done, config, weights=weights), config, FAST)
        found[name] = policy.act(seen, generator=torch.Generator().manual_seed(0))
    alike, up = found["alike"][:, 0], found["up"][:, 0]
    assert float(alike.mean()) == pytest.approx(0, abs=0.1)
    assert float(alike.std()) > 0.3
    assert float((up - 0.6).square().mean().sqrt()) < 0.12
    for actions in found.values():
        errors = actions[:, 1] - 0.5 * seen[:, 0].tanh()
        assert float(errors.square().mean().sqrt()) < 0.12


Make = Callable[..., Any]


@pytest.fixture(params=["policy", "weighted", "critics"])
def make_task(request: pytest.FixtureRequest, make_critics: Callable[..., Critics]) -> Make:
    """`make_task(config)`: one of the tasks, the same for the same configuration."""

    def make(config: TrainConfig) -> Any:
        data = transitions()
        if request.param == "critics":
            return CriticTask(make_critics("reward", "safety"), data, config)
        torch.manual_seed(0)
        # The global generator is used, too: dropout.
        policy = PolicyConfig(network=ResidualNetwork.Config(hidden=8, time_features=4)).build(3, 2)
        weights = data.rewards.exp() if request.param == "weighted" else None
        return PolicyTask(policy, data.observations, data.actions, config, weights=weights)

    return make


def test_a_run_goes_on_exactly(tmp_path: Path, make_task: Make) -> None:
    loop.train(tmp_path / "whole", make_task(CONFIG), CONFIG, FAST)
    killed = make_task(CONFIG)
    losses = killed.losses

    def die(step: int, micro: int, detail: bool) -> Any:
        if step == 5:
            raise RuntimeError("killed")
        return losses(step, micro, detail)

    killed.losses = die
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(tmp_path / "run", killed, CONFIG, FAST)
    loop.train(tmp_path / "run", make_task(CONFIG), CONFIG, FAST)
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("evaluation", 3),
        ("train", 4),
        ("train", 6),
        ("evaluation", 6),
    ]
    assert lines[0]["transitions"] == 16


NETWORKS = {
    "plain": PlainNetwork.Config(hidden=8, time_features=4),
    "with dropout": ResidualNetwork.Config(hidden=8, num_blocks=2, time_features=4, dropout=0.5),
}


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_micro_batches_make_the_same_step(
    tmp_path: Path, make_critics: Callable[..., Critics], network: str
) -> None:
    found = {}
    for accumulation in (1, 4):
        config = dataclasses.replace(CONFIG, steps=2, accumulation=accumulation)
        torch.manual_seed(0)
        policy = PolicyConfig(network=NETWORKS[network]).build(3, 2)
        data = transitions()
        critics = make_critics("reward", "safety")
        learnt = PolicyTask(policy, data.observations, data.actions, config)
        for name, one in (("policy", learnt), ("critics", CriticTask(critics, data, config))):
            run = tmp_path / f"{name}-{accumulation}"
            loop.train(run, one, config, FAST)
            found[name, accumulation] = one.model.state_dict(), read_lines(run / "metrics.jsonl")[0]["loss"]
    for name in ("policy", "critics"):
        (one, loss), (four, same) = found[name, 1], found[name, 4]
        assert same == pytest.approx(loss, rel=1e-5)
        for key, value in one.items():
            torch.testing.assert_close(four[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cuts", [2, 4])
def test_a_step_in_pieces_has_the_gradient_of_the_whole(cuts: int) -> None:
    """In float64, with dropout and a penalty of a mean over the step."""

    def gradient(pieces: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        policy = PolicyConfig(network=NETWORKS["with dropout"]).build(3, 2).double().train()
        seen, done = (table.double() for table in demonstrations())
        config = dataclasses.replace(CONFIG, accumulation=pieces)
        first = next(iter(policy.parameters()))

        def penalty(observations: Tensor) -> Tensor:
            return ((observations[:, :1] * first.sum()).mean() - 1) ** 2

        one = PolicyTask(policy, seen, done, config, penalty=penalty)
        for micro in range(pieces):
            (one.losses(0, micro, False).total / pieces).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]), torch.rand(3)

    (whole, after), (cut, then) = gradient(1), gradient(cuts)
    assert float((whole - cut).norm() / whole.norm()) < 1e-9
    assert torch.equal(after, then), "the next step begins with the same random state"


def test_what_a_step_draws_follows_from_its_number_and_the_seed(make_policy: Callable[..., Any]) -> None:
    data = demonstrations()

    def drawn(step: int, seed: int) -> list[Tensor]:
        one = PolicyTask(make_policy(), *data, dataclasses.replace(CONFIG, seed=seed, batch_size=4096))
        torch.manual_seed(step)  # the global generator is not asked
        return list(one._draw(step)[0])

    rows, times, noise = drawn(3, 7)
    assert all(torch.equal(a, b) for a, b in zip(drawn(3, 7), (rows, times, noise), strict=True))
    for other in (drawn(4, 7), drawn(3, 8), drawn(2, 8)):
        assert not torch.equal(other[2], noise)
    assert set(rows.tolist()) == set(range(40))
    assert set(times.tolist()) == set(range(5))
    counts = times.bincount()
    assert int(counts.max() - counts.min()) < 200
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_an_evaluation_looks_at_what_acts_and_is_the_same_each_time(make_policy: Callable[..., Any]) -> None:
    seen, done = demonstrations()
    policy: DiffusionPolicy = make_policy()
    one = PolicyTask(policy, seen, done, CONFIG)
    calls: list[int] = []
    first = one.evaluate(lambda: calls.append(1))
    assert len(calls) == 5, "it can be broken off"
    assert one.evaluate(lambda: None) == first
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.zero_()
    assert one.evaluate(lambda: None) == first
    policy.update_acting(0)
    noise = torch.randn(5, 40, 2, generator=torch.Generator().manual_seed(0))
    # A network of zeros predicts no noise: what is left is its square.
    assert one.evaluate(lambda: None)["noise_error"] == pytest.approx(float(noise.square().sum(2).mean()))
    assert one.headline(first) == f"noise error {first['noise_error']:.4f} on training transitions"
    aside = PolicyTask(policy, seen, done, CONFIG, held_out=(seen[:7], done[:7]))
    assert aside.headline(aside.evaluate(lambda: None)).endswith("on held-out transitions")


def test_an_evaluation_looks_at_a_bounded_number_of_transitions(
    make_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "LOOKED_AT", 5)
    seen, done = demonstrations(41)
    one = PolicyTask(make_policy(), seen, done, CONFIG)
    assert torch.equal(one._looked_at[0], seen[[0, 10, 20, 30, 40]])
    few = PolicyTask(make_policy(), seen[:3], done[:3], CONFIG)
    assert torch.equal(few._looked_at[1], done[:3])


def test_critics_tell_their_values(make_critics: Callable[..., Critics]) -> None:
    critics, data = make_critics("reward", "safety"), transitions()
    one = CriticTask(critics, data, CONFIG)
    found = one.evaluate(lambda: None)
    v = critics.v("safety", data.observations)
    assert found["safety"]["v"] == pytest.approx(float(v.mean()))
    assert found["safety"]["v_least"] == pytest.approx(float(v.min()))
    assert found["safety"]["v_greatest"] == pytest.approx(float(v.max()))
    losses = critics.losses(data)
    assert found["reward"]["q_loss"] == pytest.approx(float(losses["reward_q_loss"].detach()))
    assert one.headline(found).startswith(f"V of reward {found['reward']['v']:.2f} (")
    assert "V of safety" in one.headline(found)


def test_a_checkpoint_can_be_loaded_by_itself(tmp_path: Path, make_critics: Callable[..., Critics]) -> None:
    seen, done = demonstrations()
    policy = PolicyConfig(network=PlainNetwork.Config(hidden=8, time_features=4)).build_for(seen, done)
    policy.attach(make_critics("safety"))
    before = {name: value.clone() for name, value in policy.critics.state_dict().items()}  # type: ignore[union-attr]
    loop.train(tmp_path / "run", PolicyTask(policy, seen, done, CONFIG), CONFIG, FAST)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-6"):
        noise = policy.draw(4, 3)
        found = load(path).act(seen[:4], noise=noise, pick="min-qc")
        assert torch.equal(found, policy.act(seen[:4], noise=noise, pick="min-qc"))
    for name, value in load(tmp_path / "run").critics.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(value, before[name]), "critics that came along learn nothing"
    critics = make_critics("reward")
    loop.train(tmp_path / "critics", CriticTask(critics, transitions(), CONFIG), CONFIG, FAST)
    loaded = load_critics(tmp_path / "critics")
    assert torch.equal(loaded.v("reward", seen), critics.v("reward", seen))


def test_only_what_needs_a_gradient_is_trained(tmp_path: Path, make_policy: Callable[..., Any]) -> None:
    """A skill freezes what it lies on."""
    policy: DiffusionPolicy = make_policy()
    policy.network.requires_grad_(requires_grad=False)
    last = policy.network.layers[-1]  # type: ignore[index]
    last.weight.requires_grad_()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    loop.train(tmp_path, PolicyTask(policy, *demonstrations(), CONFIG), CONFIG, FAST)
    after = policy.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert {name.removeprefix("network.").removeprefix("acting.") for name in changed} == {"layers.6.weight"}
    assert len(changed) == 2


def test_a_skill_lies_over_every_linear_map_and_is_learnt_alone(tmp_path: Path) -> None:
    """PSEC's skills: raw alpha, A and B on each `nn.Linear`, the base from the weights that act."""
    config = PolicyConfig(network=ResidualNetwork.Config(hidden=8, num_blocks=1, time_features=4))
    seen, done = demonstrations()
    base = config.build_for(seen, done)
    skill = fresh(base.acting, "new", SkillConfig(rank=2, alpha=16.0, scale_convention="raw"))
    linear = {name for name, module in base.acting.named_modules() if isinstance(module, nn.Linear)}
    assert set(skill.factors) == linear
    policy = DiffusionPolicy(config, compose(base.acting, [], growing=skill))
    policy.scale.load_state_dict(base.scale.state_dict())
    noise = base.draw(40)
    assert torch.equal(policy.act(seen, noise=noise), base.act(seen, noise=noise)), "B is zero"
    before = {name: value.clone() for name, value in base.state_dict().items()}
    loop.train(tmp_path, PolicyTask(policy, seen, done, CONFIG), CONFIG, FAST)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    for network in (policy.network, policy.acting):
        found = learnt(network, "new")
        assert all(bool(factors.B.any()) for factors in found.factors.values())
    again = compose(base.acting, [learnt(policy.acting, "new")], weights=[1.0])
    times = torch.arange(40) % 5
    torch.testing.assert_close(again(done, times, seen), policy.acting(done, times, seen))


def test_what_does_not_fit_is_one_line(make_policy: Callable[..., Any]) -> None:
    seen, done = demonstrations()
    policy = make_policy()
    with pytest.raises(DataError, match=r"widths \(2, 2\), the model takes \(3, 2\)"):
        PolicyTask(policy, seen[:, :2], done, CONFIG)
    with pytest.raises(DataError, match="there are no transitions to learn from"):
        PolicyTask(policy, seen[:0], done[:0], CONFIG)
    with pytest.raises(DataError, match="there are no transitions"):
        PolicyTask(policy, seen, done, CONFIG, held_out=(seen[:0], done[:0]))
    with pytest.raises(DataError, match="every transition has weight 0"):
        PolicyTask(policy, seen, done, CONFIG, weights=torch.zeros(40))
