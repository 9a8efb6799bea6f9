"""Every family through the one interface, held against the simulators used by hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import DeviceError, RecipeError
from expertise.policy.data.teachers import Script
from expertise.policy.envs import FAMILIES, Environment, Environments, make, names
from expertise.policy.envs.physics import import_mujoco

# Not `importorskip`: MuJoCo must be imported by the package, which tells it how to render.
if not all(importlib.util.find_spec(name) for name in ("dm_control", "metaworld")):
    pytest.skip("`make setup-policy` installs the simulators", allow_module_level=True)

needs_bullet = pytest.mark.skipif(
    not importlib.util.find_spec("bullet_safety_gym"), reason="`make setup-safety` installs it"
)
BULLET = ["bullet/BallRun", "bullet/CarCircle", "bullet/DroneRun", "bullet/AntRun"]
SAMPLES = [
    "dmc/walker-walk",
    "dmc/cheetah-run@gravity=1.5,strength=0.8",
    "gym/Humanoid-v5",  # its actions reach 0.4 only
    "velocity/Hopper-v5",
    "metaworld/push-v3",
    *(pytest.param(name, marks=needs_bullet) for name in BULLET),
]


@pytest.fixture(params=SAMPLES)
def environment(request: pytest.FixtureRequest) -> Iterator[Environment]:
    with make(request.param) as made:
        yield made


def episode(environment: Environment, seed: int, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Observations [T + 1, O] and rewards and costs [T, 2] under actions drawn from the seed."""
    dice = np.random.default_rng(seed)
    seen, given = [environment.reset(seed)], []
    for _ in range(steps):
        step = environment.step(dice.uniform(-1, 1, environment.action_dim))
        seen.append(step.observation)
        given.append((step.reward, step.cost))
        if step.terminated or step.truncated:
            break
    return np.array(seen), np.array(given)


def same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_a_policy_sees(environment: Environment) -> None:
    observation = environment.reset(3)
    assert observation.dtype == np.float32
    assert observation.shape == (environment.observation_dim,)
    step = environment.step(np.zeros(environment.action_dim))
    assert step.observation.dtype == np.float32
    assert (type(step.reward), type(step.cost)) == (float, float)
    assert (step.success is None) == (not environment.name.startswith("metaworld"))


def test_a_seed_decides_an_episode_whatever_came_before(environment: Environment) -> None:
    first, other = episode(environment, 5), episode(environment, 6)
    assert same(first, episode(environment, 5))
    assert not same(first, other)
    with make(environment.name) as fresh:
        assert same(first, episode(fresh, 5))


def test_actions_are_clipped_at_one(environment: Environment) -> None:
    environment.reset(0)
    ends = [environment.step(np.full(environment.action_dim, 1.0)).observation]
    environment.reset(0)
    ends.append(environment.step(np.full(environment.action_dim, 50.0)).observation)
    assert np.array_equal(*ends)


def test_an_episode_is_cut_at_its_limit_and_then_over() -> None:
    with make("dmc/cheetah-run@repeat=3") as environment:
        assert environment.max_steps == 334  # of 1,000 simulated steps the last decision has one
        environment.reset(0)
        steps = [environment.step(np.zeros(6))]
        while not steps[-1].truncated:
            steps.append(environment.step(np.zeros(6)))
        assert len(steps) == 334
        assert not any(step.terminated for step in steps)
        with pytest.raises(RuntimeError, match="reset before you step"):
            environment.step(np.zeros(6))


def test_a_fall_terminates() -> None:
    with make("gym/Hopper-v5") as environment:
        environment.reset(0)
        steps = [environment.step(np.full(3, -1.0)) for _ in range(30) if environment._simulated is not None]
    assert steps[-1].terminated
    assert not steps[-1].truncated


def test_the_suite_used_by_hand_gives_the_same() -> None:
    from dm_control import suite

    by_hand = suite.load("walker", "walk", task_kwargs={"random": 11})
    first = by_hand.reset()
    action = np.linspace(-1, 1, 6)
    steps = [by_hand.step(action) for _ in range(2)]
    with make("dmc/walker-walk") as environment:
        observation = environment.reset(11)
        step = environment.step(action)
    expected = np.concatenate(
        [np.ravel(first.observation[k]) for k in ("orientations", "height", "velocity")]
    )
    assert np.array_equal(observation, expected.astype(np.float32))
    assert step.reward == sum(s.reward for s in steps)


def test_cost_is_speed_over_the_limit() -> None:
    import gymnasium

    by_hand = gymnasium.make("Swimmer-v5", disable_env_checker=True).unwrapped
    dice, costs, expected = np.random.default_rng(0), [], []
    with make("velocity/Swimmer-v5") as environment, make("gym/Swimmer-v5") as free:
        environment.reset(1)
        free.reset(1)
        by_hand.reset(seed=1)
        for _ in range(60):
            action = dice.uniform(-1, 1, 2)
            step, info = environment.step(action), by_hand.step(action)[4]
            costs.append(step.cost)
            expected.append(float(np.hypot(info["x_velocity"], info["y_velocity"]) > 0.2282))
            assert free.step(action).cost == 0.0
    by_hand.close()
    assert costs == expected
    assert 0 < sum(costs) < 60


def test_the_script_of_a_task_succeeds() -> None:
    script, dice = Script("metaworld/reach-v3"), np.random.default_rng(0)
    with make("metaworld/reach-v3") as environment:
        observation = environment.reset(4)
        goal = observation[-3:]
        assert np.abs(goal).max() > 0.01  # the goal is in the observation, not hidden
        for _ in range(environment.max_steps):
            step = environment.step(script.act(observation, dice))
            observation = step.observation
            if step.success:
                break
        assert step.success
        assert np.linalg.norm(observation[:3] - goal) < 0.06


def test_a_shift_changes_what_it_names() -> None:
    def model(name: str) -> Any:
        with make(name) as environment:
            m = environment._simulator._env.physics.model
            return (
                m.opt.gravity[2],
                m.body_mass.sum(),
                m.body_inertia.sum(),
                m.geom_friction[:, 0].sum(),
                m.actuator_gainprm[:, 0].sum(),
                m.body_subtreemass[0],
            )

    plain = model("dmc/walker-walk")
    changed = model("dmc/walker-walk@gravity=2,mass=1.5,friction=0.5,strength=0.25")
    # The last one is derived: the solver's own sums follow.
    assert np.allclose(np.divide(changed, plain), [2, 1.5, 1.5, 0.5, 0.25, 1.5])


@pytest.mark.parametrize("change", ["gravity=1.5", "mass=1.5", "friction=0.25", "strength=0.5"])
def test_a_shift_changes_what_happens(change: str) -> None:
    with make("gym/Walker2d-v5") as plain, make(f"gym/Walker2d-v5@{change}") as shifted:
        seen, other = episode(plain, 0)[0], episode(shifted, 0)[0]
    assert np.array_equal(seen[0], other[0])
    steps = min(len(seen), len(other))
    assert not np.allclose(seen[:steps], other[:steps])


@pytest.mark.parametrize("name", ["dmc/walker-walk@strength=1000", "gym/HalfCheetah-v5@strength=1e6"])
def test_a_simulation_that_runs_away_ends_the_episode(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with make(name) as environment:
        for _ in range(2):
            environment.reset(0)
            steps = [environment.step(np.ones(environment.action_dim))]
            while not (steps[-1].terminated or steps[-1].truncated):
                steps.append(environment.step(np.ones(environment.action_dim)))
            assert (steps[-1].blown_up, steps[-1].terminated) == (True, True)
            assert np.isfinite(steps[-1].observation).all()
            assert not any(step.blown_up for step in steps[:-1])
    assert not list(tmp_path.iterdir())  # MuJoCo's log


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        make("metaworld/psuh-v3")
    assert caught.value.hints == ("did you mean 'push-v3'?",)


@pytest.mark.parametrize(
    ("family", "number", "one"),
    [
        ("dmc", 28, "hopper-hop"),
        ("metaworld", 50, "hammer-v3"),
        ("gym", 11, "Ant-v5"),
        ("velocity", 6, "Hopper-v5"),
    ],
)
def test_names_of_a_family(family: str, number: int, one: str) -> None:
    assert len(names(family)) >= number
    assert f"{family}/{one}" in names(family)


def test_pictures() -> None:
    with make("dmc/walker-walk") as environment:
        environment.reset(0)
        try:
            frame = environment.render(64, 48)
        except DeviceError as error:
            pytest.skip(error.message)
        assert (frame.shape, frame.dtype) == ((48, 64, 3), np.uint8)
        assert frame.std() > 1
        assert environment.render(32, 32).shape == (32, 32, 3)


def test_where_nothing_can_be_rendered_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    def broken(*_: object) -> None:
        raise RuntimeError("no display\nat all")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    with make("gym/Hopper-v5") as environment:
        environment.reset(0)
        with pytest.raises(DeviceError, match=r"nothing can be rendered here: no display$"):
            environment.render()


NO_OPENGL = """
import sys
class Broken:
    def find_spec(self, name, *_):
        if name == "OpenGL":
            raise AttributeError("no glGetError\\nat all")
sys.meta_path.insert(0, Broken())
from expertise.errors import DeviceError
from expertise.policy.envs import make
for name in sys.argv[1:]:
    with make(name) as environment:
        environment.reset(0)
        try:
            environment.render()
        except DeviceError as error:
            print(error.message)
"""


def without_opengl(way: str) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-c", NO_OPENGL, "gym/Hopper-v5", "dmc/walker-walk"]
    others = {key: value for key, value in os.environ.items() if key != "PYOPENGL_PLATFORM"}
    return subprocess.run(code, capture_output=True, text=True, env={**others, "MUJOCO_GL": way})


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("osmesa", "MUJOCO_GL=osmesa does not work: no glGetError"),
        ("egl", "MUJOCO_GL=egl does not work: no glGetError"),
        ("off", "MUJOCO_GL=off turns it off"),
    ],
)
def test_mujoco_simulates_where_it_cannot_render(way: str, reason: str) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("these ways are Linux's")
    done = without_opengl(way)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"nothing can be rendered here: {reason}"] * 2


def test_an_unknown_way_to_render_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "elg")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    with pytest.raises(DeviceError, match=r"^MUJOCO_GL=elg names no way to render$") as caught:
        import_mujoco("a test")
    assert caught.value.hints[0] == "did you mean 'egl'?"


# --- several side by side -------------------------------------------------------------------------------


def test_side_by_side_is_as_one_by_one() -> None:
    with Environments("gym/Hopper-v5", 3) as row, make("gym/Hopper-v5") as single:
        observations, seeds = row.reset([7, 8]), [7, 8]
        assert row.running.tolist() == [True, True, False]
        dice = [np.random.default_rng(seed) for seed in seeds]
        seen, rewards = [observations], []
        while row.running.any():
            actions = np.zeros((3, 3))
            for index in range(2):
                actions[index] = dice[index].uniform(-1, 1, 3)
            steps = row.step(actions)
            seen.append(steps.observations)
            rewards.append(steps.rewards)
        assert steps.observations.dtype == np.float32
        for index, seed in enumerate(seeds):
            alone = episode(single, seed, 2000)
            length = len(alone[1])
            assert np.array_equal(np.array(seen)[: length + 1, index], alone[0])
            assert np.array_equal(np.array(rewards)[:length, index], alone[1][:, 0])
            # After the end the last observation stays, and nothing is earned.
            assert (np.array(rewards)[length:, index] == 0).all()
            assert (np.array(seen)[length:, index] == alone[0][-1]).all()
        assert (np.array(rewards)[:, 2] == 0).all()


def test_more_seeds_than_environments_are_a_mistake_of_the_caller() -> None:
    with Environments("gym/Hopper-v5", 1) as row, pytest.raises(ValueError, match="2 seeds for 1"):
        row.reset([1, 2])


def test_the_table_of_families_is_complete() -> None:
    tried = [sample for sample in SAMPLES if isinstance(sample, str)]
    assert {name.split("/")[0] for name in [*tried, *BULLET]} == set(FAMILIES)
