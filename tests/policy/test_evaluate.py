"""The one loop that lets policies act, on a point that is pushed over the plane."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expertise.errors import DataError, DeviceError, RecipeError
from expertise.policy import Critics, DiffusionPolicy
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.direct import DirectConfig, DirectPolicy
from expertise.policy.compose import ComposedPolicy
from expertise.policy.data.scores import on_scale
from expertise.policy.envs import Environment
from expertise.policy.envs.simulator import BlownUpError, Outcome
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.evaluation import write_film
from expertise.policy.seeds import evaluate_seeds
from expertise.skills.skill import Skill

MakePolicy = Callable[..., DiffusionPolicy]
pytestmark = pytest.mark.usefixtures("toy")


def steady(x: float, y: float) -> DirectPolicy:
    """Always pushes the same way."""
    policy = DirectConfig(hidden=[]).build(3, 2)
    with torch.no_grad():
        policy.network[0].weight.zero_()
        policy.network[0].bias.copy_(torch.tensor([x, y]).atanh())
    return policy


def config(task: str = "left", **fields: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"environment": f"toy/{task}", "episodes": 5, "parallel": 2, **fields})


def by_hand(seed: int, task: str, push: tuple[float, float]) -> tuple[float, float, int]:
    """Return, cost and steps of an episode with a steady push."""
    total = cost = steps = 0.0
    with Environment(f"toy/{task}") as environment:
        environment.reset(seed)
        while True:
            step = environment.step(np.array(push))
            total, cost, steps = total + step.reward, cost + step.cost, steps + 1
            if step.terminated or step.truncated:
                return total, cost, int(steps)


def test_returns_and_costs_are_sums_over_whole_episodes() -> None:
    found = evaluate(steady(0.5, -0.4), config("fall"))
    assert [episode.steps for episode in found.episodes] != [40] * 5, "some fell"
    for episode in found.episodes:
        total, cost, steps = by_hand(episode.seed, "fall", (0.5, -0.4))
        assert episode.total == pytest.approx(total)
        assert (episode.cost, episode.steps) == (cost, steps)
    metrics = found.metrics()
    assert metrics["return"] == [episode.total for episode in found.episodes]
    assert metrics["normalized_cost"] == [episode.cost / 10 for episode in found.episodes]
    summary = found.summary()
    assert summary["cost"] == pytest.approx(np.mean([episode.cost for episode in found.episodes]))
    error = np.std(metrics["return"], ddof=1) / 5**0.5
    assert summary["return_error"] == pytest.approx(error)
    alone = evaluate(steady(0.5, -0.4), config("fall", episodes=1)).summary()
    assert not [name for name in alone if name.endswith("_error")], "a single episode has no spread"
    assert "normalized_reward" not in summary, "nobody has a scale for toys"
    assert found.is_safe == (summary["normalized_cost"] < 1)


def test_an_episode_follows_from_seed_and_number_however_many_run_beside_it(make_policy: MakePolicy) -> None:
    policy = make_policy()
    torch.manual_seed(1)
    first = evaluate(policy, config(num_candidates=3, episodes=6))
    torch.manual_seed(2)
    again = evaluate(policy, config(num_candidates=3, episodes=6))
    assert first.to_json() == again.to_json()
    others = evaluate(policy, config(num_candidates=3, parallel=4, episodes=5))
    assert [e.seed for e in others.episodes] == [e.seed for e in first.episodes][:5]
    totals = [e.total for e in others.episodes]
    assert totals == pytest.approx([e.total for e in first.episodes][:5], abs=1e-4)
    elsewhere = evaluate(policy, config(num_candidates=3, seed=1, episodes=6))
    assert not {e.seed for e in elsewhere.episodes} & {e.seed for e in first.episodes}
    # The policy's own noise differs from episode to episode.
    assert len({round(e.total, 6) for e in first.episodes}) == 6


def test_success_counts_at_any_step_and_may_end_an_episode() -> None:
    policy = steady(-0.5, 0.3)
    whole = evaluate(policy, config("left", episodes=12, parallel=5))
    short = evaluate(policy, config("left", episodes=12, parallel=5, stop_at_success=True))
    successes = [episode.success for episode in whole.episodes]
    assert 0 < sum(successes) < 12, "else this shows nothing"
    assert [episode.success for episode in short.episodes] == successes
    for one, other in zip(whole.episodes, short.episodes, strict=True):
        assert one.steps == 40
        assert (other.steps < 40) == other.success
    assert whole.summary()["success"] == pytest.approx(np.mean(successes))


def test_traces_hold_what_the_safety_critic_fears(
    make_policy: MakePolicy, make_critics: Callable[..., Critics]
) -> None:
    policy = make_policy()
    assert evaluate(policy, config("right")).traces[0].risk is None
    policy.attach(make_critics("safety"))
    (trace,) = evaluate(policy, config("right")).traces
    assert trace.positions is not None
    seen = torch.tensor(np.column_stack([trace.positions, np.ones(len(trace.rewards))]), dtype=torch.float32)
    assert policy.critics is not None
    np.testing.assert_allclose(trace.risk, policy.critics.v("safety", seen), atol=1e-5)
    assert np.ptp(trace.risk) > 0.01


def test_traces_hold_what_was_weighed_up_where_and_what_it_cost(
    tmp_path: Path, make_policy: MakePolicy, make_skill: Callable[..., Skill]
) -> None:
    policy = ComposedPolicy(make_policy(), [make_skill("go"), make_skill("stay")], ALPHA.config())
    torch.nn.init.normal_(policy.alpha.network[-1].weight)  # type: ignore[union-attr]
    found = evaluate(policy, config("right", traces=3, film_every=7))
    assert [trace.episode for trace in found.traces] == [0, 1, 2]
    for trace, episode in zip(found.traces, found.episodes, strict=False):
        assert trace.rewards.sum() == pytest.approx(episode.total)
        assert trace.costs.sum() == episode.cost
        assert trace.alpha is not None
        assert trace.positions is not None
        assert trace.alpha.shape == (episode.steps, 2)
        seen = torch.tensor(np.column_stack([trace.positions, np.ones(episode.steps)]), dtype=torch.float32)
        np.testing.assert_allclose(trace.alpha, policy.weigh(seen).detach(), atol=1e-5)
        assert trace.frame_steps == [0, 7, 14, 21, 28, 35]
        assert trace.frames[0].shape == (240, 320, 3)
        assert episode.alpha == pytest.approx(trace.alpha[::8].mean(0), abs=1e-6)
    stay = [episode.alpha[1] for episode in found.episodes]
    assert len(set(stay)) > 1
    assert found.summary()["alpha_stay"] == pytest.approx(np.mean(stay))
    assert found.summary()["alpha_stay_error"] == pytest.approx(np.std(stay, ddof=1) / len(stay) ** 0.5)
    values = json.loads(json.dumps(found.to_json()))
    assert values["names"] == ["go", "stay"]
    assert len(values["traces"][2]["alpha"]) == found.episodes[2].steps
    assert evaluate(policy, config("right", traces=0)).traces == []
    assert all(not parameter.grad_fn for parameter in policy.parameters())


def test_the_same_candidates_and_choice_for_every_policy(
    make_policy: MakePolicy, make_critics: Callable[..., Critics]
) -> None:
    policy = make_policy(num_candidates=4, pick="min-qc")
    policy.attach(make_critics("safety"))
    own = evaluate(policy, config())
    assert evaluate(policy, config(num_candidates=4, pick="min-qc")).to_json() == own.to_json()
    assert evaluate(policy, config(num_candidates=1, pick="first")).to_json() != own.to_json()


def test_where_no_pictures_can_be_taken_that_is_said_once_and_nothing_fails(
    toy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(*_: Any) -> Any:
        raise DeviceError("nothing renders here", "install a renderer")

    monkeypatch.setattr(toy, "frame", blind)
    said: list[str] = []
    found = evaluate(steady(0.1, 0.1), config(traces=2, film_every=5), said.append)
    assert said == ["no film: nothing renders here", "install a renderer"]
    assert found.traces[0].frames == []
    assert len(found.episodes) == 5


def test_films(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        write_film([], tmp_path / "film.gif")
    pytest.importorskip("imageio", reason="`make setup-policy` installs it")
    frames = [np.full((16, 16, 3), shade, np.uint8) for shade in (0, 128, 255)]
    write_film(frames, tmp_path / "deep" / "film.gif")
    assert (tmp_path / "deep" / "film.gif").read_bytes()[:3] == b"GIF"


def test_what_does_not_fit_is_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(RecipeError, match=r"toy/left has .* widths \(3, 2\), the policy is for \(4, 2\)"):
        evaluate(make_policy().config.build(4, 2), config())
    with pytest.raises(RecipeError, match="unknown pick 'minqc'"):
        config(pick="minqc")
    with pytest.raises(RecipeError, match="no name of an environment"):
        EvaluationConfig(environment="walker")


def test_a_simulation_that_runs_away_ends_its_episode_and_that_is_said(
    make_policy: MakePolicy, toy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = toy.step  # type: ignore[attr-defined]

    def run_away(self: Any, action: Any) -> Outcome:
        self.number = getattr(self, "number", 0) + 1
        if self.number == 3:
            raise BlownUpError
        return step(self, action)  # type: ignore[no-any-return]

    monkeypatch.setattr(toy, "step", run_away)
    said: list[str] = []
    found = evaluate(make_policy(), config("right", episodes=2, parallel=2), said.append)
    assert "2 episodes ended early: the simulation ran away" in said
    assert [episode.steps for episode in found.episodes] == [3, 3]


@pytest.mark.parametrize("names", [("a", "b_error"), ("a", "a_error")])
def test_skills_may_be_called_anything(
    make_policy: MakePolicy, make_skill: Callable[..., Skill], names: tuple[str, str]
) -> None:
    policy = ComposedPolicy(make_policy(), [make_skill(name) for name in names], ALPHA.config())
    summary = evaluate_seeds(policy, config("right", episodes=2), [0, 1]).summary()
    assert {f"alpha_{name}" for name in names} <= set(summary)


def test_scales_of_the_usual_data_sets() -> None:
    assert on_scale("bullet/BallRun", 1327.445556640625) == pytest.approx(1.0)
    assert on_scale("gym/Hopper-v5@gravity=1.5", -20.272305) == pytest.approx(0.0)
    assert on_scale("gym/HalfCheetah-v5", (12135.0 - 280.178953) / 2) == pytest.approx(0.5)
    assert on_scale("dmc/walker-walk", 500.0) is None
