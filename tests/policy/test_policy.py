"""Acting: what follows from given noise, which candidate is taken, which weights act; saving and loading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expertise.errors import DataError, RecipeError, RunError
from expertise.policy import (
    Critics,
    DiffusionConfig,
    DiffusionPolicy,
    PolicyConfig,
    load,
    load_critics,
    save,
)
from expertise.policy.batch import Scale
from expertise.policy.network import ResidualNetwork
from expertise.runs import checkpoint

MakePolicy = Callable[..., DiffusionPolicy]
MakeCritics = Callable[..., Critics]


def by_hand(policy: DiffusionPolicy, seen: Tensor, noise: Tensor) -> Tensor:
    """One action for one state: the release's sampler, a number at a time."""
    steps = 5
    alphas = [math.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2) for t in range(1, steps + 1)]
    kept = [math.prod(alphas[: t + 1]) for t in range(steps)]
    scaled = ((seen - policy.scale.mean) / policy.scale.std)[None]
    x = noise[0]
    for sheet, t in enumerate(reversed(range(steps)), 1):
        with torch.no_grad():
            predicted = policy.acting(x[None], torch.tensor([t]), scaled)[0]
        x = (x - (1 - alphas[t]) / math.sqrt(1 - kept[t]) * predicted) / math.sqrt(alphas[t])
        if t > 0:
            x = x + math.sqrt(1 - alphas[t]) * noise[sheet]
        x = x.clamp(-1, 1)
    return x


def test_actions_are_the_release_s_sampler_on_each_state_and_candidate(make_policy: MakePolicy) -> None:
    policy = make_policy()
    seen = torch.randn(4, 3) * 5 + 2
    policy.scale.fit(seen)
    noise = policy.draw(4, 3)
    assert noise.shape == (5, 4, 3, 2)
    found = policy.candidates(seen, noise)
    assert found.shape == (4, 3, 2)
    for state in range(4):
        for candidate in range(3):
            expected = by_hand(policy, seen[state], noise[:, state, candidate])
            torch.testing.assert_close(found[state, candidate], expected)
    assert torch.equal(policy.act(seen, noise=noise), found[:, 0])
    assert float(found.abs().max()) <= 1


def test_an_action_follows_from_the_noise_or_the_generator_alone(make_policy: MakePolicy) -> None:
    policy, seen = make_policy(num_candidates=2), torch.randn(4, 3)
    noise = policy.draw(4, 2, torch.Generator().manual_seed(3))
    again = policy.act(seen, generator=torch.Generator().manual_seed(3))
    assert torch.equal(policy.act(seen, noise=noise), again)
    assert not torch.equal(policy.act(seen, generator=torch.Generator().manual_seed(4)), again)
    before = torch.get_rng_state()
    policy.act(seen, noise=noise)
    policy.act(seen, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is left alone"
    torch.manual_seed(9)
    first = policy.act(seen)
    torch.manual_seed(9)
    assert torch.equal(policy.act(seen), first)
    torch.testing.assert_close(policy.act(seen.double(), noise=noise), again)
    assert policy.act(seen.double(), noise=noise).dtype == torch.float32
    # A state's action does not depend on the states beside it.
    torch.testing.assert_close(policy.act(seen[2:3], noise=noise[:, 2:3]), again[2:3])


def test_the_candidate_that_the_critic_prefers_is_taken(
    make_policy: MakePolicy, make_critics: MakeCritics
) -> None:
    policy, critics, seen = make_policy(), make_critics("reward", "safety"), torch.randn(6, 3)
    policy.attach(critics)
    noise = policy.draw(6, 8)
    candidates = policy.candidates(seen, noise)
    for pick, name, sign in (("max-q", "reward", 1), ("min-qc", "safety", -1)):
        found = policy.act(seen, noise=noise, pick=pick)
        chosen = set()
        for state in range(6):
            rows = seen[state].expand(8, 3)
            values = (critics.q(name, rows, candidates[state]) * sign).tolist()
            best = values.index(max(values))
            assert torch.equal(found[state], candidates[state, best])
            chosen.add(best)
        assert len(chosen) > 1, "else this shows nothing"
    assert torch.equal(policy.act(seen, noise=noise), candidates[:, 0])


def test_the_configuration_says_how_many_and_which(
    make_policy: MakePolicy, make_critics: MakeCritics
) -> None:
    policy, seen = make_policy(num_candidates=4, pick="min-qc"), torch.randn(3, 3)
    policy.attach(make_critics("safety"))
    found = policy.act(seen, generator=torch.Generator().manual_seed(0))
    noise = policy.draw(3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(found, policy.act(seen, noise=noise, pick="min-qc"))
    one = policy.act(seen, num_candidates=1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, policy.act(seen, noise=policy.draw(3, 1, torch.Generator().manual_seed(0))))


def test_what_cannot_act_says_why(make_policy: MakePolicy, make_critics: MakeCritics) -> None:
    policy, seen = make_policy(), torch.randn(2, 3)
    with pytest.raises(RecipeError, match="'min-qc' needs a critic of safety, and the policy has no critics"):
        policy.act(seen, pick="min-qc")
    policy.attach(make_critics("reward"))
    with pytest.raises(RecipeError, match="a critic of safety is needed, and there is none"):
        policy.act(seen, pick="min-qc")
    with pytest.raises(RecipeError, match="num_candidates must be at least 1, not 0"):
        policy.act(seen, num_candidates=0)
    with pytest.raises(DataError, match="takes observations of width 3, not 4"):
        policy.act(torch.randn(2, 4))
    with pytest.raises(DataError, match=r"noise of shape \[5, 3, 1, 2\] does not fit 2 states"):
        policy.act(seen, noise=policy.draw(3))
    for noise in (policy.draw(2)[0], policy.draw(2)[:, :, :0], np.zeros(3)):
        with pytest.raises(DataError, match=r"noise of shape \[.*\] does not fit 2 states"):
            policy.act(seen, noise=noise)
    given = policy.draw(2)
    for noise in (given.double(), given.numpy(), given.double().numpy()):
        torch.testing.assert_close(policy.act(seen, noise=noise), policy.act(seen, noise=given))
    with pytest.raises(RecipeError, match=r"ema_rate must lie in \(0, 1\] .* not 0\.0 and 10"):
        PolicyConfig(ema_rate=0.0)
    for wrong in (lambda: PolicyConfig(pick="max-qc"), lambda: policy.act(seen, pick="max-qc")):
        with pytest.raises(RecipeError, match="unknown pick 'max-qc'") as caught:
            wrong()
        assert caught.value.hints == ("did you mean 'max-q'?",)
    other = PolicyConfig(network=policy.config.network).build(4, 2)
    with pytest.raises(RecipeError, match=r"widths \(3, 2\), the policy's are \(4, 2\)"):
        other.attach(make_critics("reward"))


def test_it_acts_on_what_a_simulator_gives_and_answers_in_kind(
    tmp_path: Path, make_policy: MakePolicy
) -> None:
    save(make_policy(), tmp_path / "policy")
    policy, seen = load(tmp_path / "policy"), torch.randn(4, 3)
    noise = policy.draw(4)
    expected = policy.act(seen, noise=noise)
    read_only = seen.numpy().astype(np.float64)
    read_only.flags.writeable = False
    for given in (seen.numpy(), read_only, read_only.astype(">f8"), read_only[::-1][::-1], seen.tolist()):
        found = policy.act(given, noise=noise)
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape) == (np.float32, (4, 2))
        np.testing.assert_array_equal(found, expected.numpy())
    one = noise[:, :1]
    alone = policy.act(seen[:1], noise=one)[0]
    tensor = policy.act(seen[0].double(), noise=one)
    assert isinstance(tensor, Tensor)
    assert torch.equal(tensor, alone)
    for single in (seen[0].numpy(), seen[0].tolist(), tuple(seen[0].tolist())):
        found = policy.act(single, noise=one)
        assert isinstance(found, np.ndarray)
        assert found.shape == (2,)
        np.testing.assert_array_equal(found, alone.numpy())
    assert policy.act([1, 0, 2]).shape == (2,)


def test_what_is_no_observation_is_refused_in_a_line(make_policy: MakePolicy) -> None:
    policy = make_policy()
    cases: list[tuple[Any, str]] = [
        (None, "not a NoneType of object"),
        ("seen", "not a str of <U4"),
        ({"seen": [1.0]}, "not a dict of object"),
        ([[1.0, 2.0, 3.0], [1.0]], "not such a list"),
        (np.array([True, False, True]), "not a ndarray of bool"),
        (np.zeros((1, 3), complex), "not a ndarray of complex128"),
        (torch.zeros(1, 3, dtype=torch.complex64), "not torch.complex64"),
        (torch.zeros(3, dtype=torch.bool), "not torch.bool"),
        (1.0, r"one state, not \[\]"),
        (torch.zeros(2, 1, 3), r"are \[states, 3\], or \[3\] for one state, not \[2, 1, 3\]"),
        (np.zeros((2, 4)), "takes observations of width 3, not 4"),
        ([], "takes observations of width 3, not 0"),
    ]
    for given, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            policy.act(given)
        assert "\n" not in caught.value.message


def test_the_slow_copy_acts_and_follows(make_policy: MakePolicy) -> None:
    policy = make_policy(ema_rate=0.25, ema_warmup=0)
    seen, noise = torch.randn(4, 3), policy.draw(4)
    before = policy.act(seen, noise=noise)
    old = [p.clone() for p in policy.acting.parameters()]
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(1.0)
    assert torch.equal(policy.act(seen, noise=noise), before)
    policy.update_acting(0)
    for slow, was in zip(policy.acting.parameters(), old, strict=True):
        torch.testing.assert_close(slow, was + 0.25)
        assert not slow.requires_grad
    assert not torch.equal(policy.act(seen, noise=noise), before)


def test_the_slow_copy_follows_faster_at_first(make_policy: MakePolicy) -> None:
    policy = make_policy(ema_rate=0.001, ema_warmup=10)
    slow, fast = next(policy.acting.parameters()), next(policy.network.parameters())
    for step, rate in ((0, 1.0), (1, 10 / 11), (90, 0.1), (9990, 0.001), (10**6, 0.001)):
        with torch.no_grad():
            fast.add_(1.0)
        was = slow.clone()
        policy.update_acting(step)
        torch.testing.assert_close(slow, was + rate * (fast - was))


def test_what_acts_is_never_in_training_mode() -> None:
    """Dropout would make its actions random."""
    torch.manual_seed(0)
    policy = PolicyConfig(network=ResidualNetwork.Config(hidden=8, time_features=4)).build(3, 2).train()
    assert policy.network.training
    assert not any(module.training for module in policy.acting.modules())
    seen, noise = torch.randn(4, 3), policy.draw(4)
    assert torch.equal(policy.act(seen, noise=noise), policy.act(seen, noise=noise))
    assert not policy.act(seen, noise=noise).requires_grad


def test_a_scale_comes_from_data_and_spares_what_does_not_vary() -> None:
    seen = torch.randn(1000, 3) * torch.tensor([5.0, 0.01, 1e-5]) + torch.tensor([100.0, -1.0, 7.0])
    scale = Scale(3)
    assert torch.equal(scale(seen), seen)
    scale.fit(seen)
    scaled = scale(seen)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled[:, :2].std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert float(scale.std[2]) == 1.0
    assert set(scale.state_dict()) == {"mean", "std"}


def test_a_policy_for_data_takes_widths_and_scale_from_it() -> None:
    seen, done = torch.randn(50, 4) * 3 + 1, torch.zeros(50, 2)
    policy = PolicyConfig(network=ResidualNetwork.Config(hidden=8, time_features=4)).build_for(seen, done)
    assert (policy.observation_dim, policy.action_dim) == (4, 2)
    torch.testing.assert_close(policy.scale(seen).std(0, correction=0), torch.ones(4))
    plain = PolicyConfig(network=policy.config.network, normalize=False).build_for(seen, done)
    assert torch.equal(plain.scale(seen), seen)


def altered(policy: DiffusionPolicy) -> DiffusionPolicy:
    """A policy in which everything that is saved differs from what is built anew."""
    policy.scale.fit(torch.randn(50, 3) * 4 + 1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def test_a_saved_policy_acts_as_before(
    tmp_path: Path, make_policy: MakePolicy, make_critics: MakeCritics
) -> None:
    fields = {"num_candidates": 3, "pick": "min-qc", "diffusion": DiffusionConfig(num_steps=4, clip=0.9)}
    policy = altered(make_policy(**fields))
    policy.attach(make_critics("reward", "safety"))
    save(policy, tmp_path / "policy", step=7)
    before = torch.get_rng_state()
    loaded = load(tmp_path / "policy")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == policy.config
    assert not loaded.training
    seen = torch.randn(5, 3)
    for pick in ("first", "max-q", "min-qc"):
        noise = policy.draw(5, 3)
        assert torch.equal(loaded.act(seen, noise=noise, pick=pick), policy.act(seen, noise=noise, pick=pick))
    for name, value in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "policy.json",
        "model.safetensors",
        "manifest.json",
    }
    assert checkpoint.open_checkpoint(tmp_path / "policy").step == 7


def test_saving_replaces_a_policy_and_nothing_else(tmp_path: Path, make_policy: MakePolicy) -> None:
    save(make_policy(), tmp_path / "policy")
    other = altered(make_policy())
    save(other, tmp_path / "policy")
    assert torch.equal(load(tmp_path / "policy").scale.mean, other.scale.mean)
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"policy holds more than a policy: notes\.txt"):
        save(other, tmp_path / "policy")
    assert (tmp_path / "policy" / "notes.txt").read_text() == "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    checkpoint.write(tmp_path / "other", 3, {"model": {"w": torch.zeros(1)}}, {"model.json": "{}"})
    with pytest.raises(RunError, match="other exists and is neither"):
        save(other, tmp_path / "other")
    with pytest.raises(RunError, match="mine exists and is neither a policy nor critics"):
        save(other, tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "policy.json", "manifest.json"])
def test_a_damaged_policy_is_refused_by_the_name_of_its_file(
    tmp_path: Path, make_policy: MakePolicy, name: str
) -> None:
    save(make_policy(), tmp_path / "policy")
    file = tmp_path / "policy" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=f"{name} is not what was written"):
        load(tmp_path / "policy")
    file.unlink()
    with pytest.raises(RunError, match=r"is missing|holds no policy"):
        load(tmp_path / "policy")


def test_critics_stand_alone_and_are_no_policy(
    tmp_path: Path, make_policy: MakePolicy, make_critics: MakeCritics
) -> None:
    critics = make_critics("safety")
    critics.scale.fit(torch.randn(20, 3) * 3)
    save(critics, tmp_path / "critics")
    loaded = load_critics(tmp_path / "critics")
    assert loaded.config == critics.config
    seen, done = torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(loaded.q("safety", seen, done), critics.q("safety", seen, done))
    with pytest.raises(RunError, match=r"critics holds no policy: there is no policy\.json"):
        load(tmp_path / "critics")
    save(make_policy(), tmp_path / "policy")
    with pytest.raises(RunError, match=r"policy holds no critics: there is no critics\.json"):
        load_critics(tmp_path / "policy")
    with pytest.raises(RunError, match=r"^no policy at .*nowhere$"):
        load(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_named(tmp_path: Path, make_policy: MakePolicy) -> None:
    policy = make_policy()
    facts = policy.facts() | {"action_dim": 3}
    texts = {"policy.json": json.dumps(facts)}
    checkpoint.write(tmp_path / "policy", 0, {"model": policy.state_dict()}, texts)
    with pytest.raises(RunError, match=r"fit its policy\.json: network\.layers\.0\.weight is \[16, 9\]"):
        load(tmp_path / "policy")
