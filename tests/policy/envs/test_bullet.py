"""What is special about Bullet's tasks: costs, places, and randomness that would be everyone's."""

from __future__ import annotations

import numpy as np
import pytest

from expertise.errors import RecipeError
from expertise.policy.data import scores
from expertise.policy.envs import make, names

pytest.importorskip("bullet_safety_gym", reason="`make setup-safety` installs it")


def test_costs_and_places_are_the_simulator_s() -> None:
    with make("bullet/BallRun") as environment:
        environment.reset(0)
        simulator = environment._simulator
        for _ in range(60):
            step = environment.step(np.array([1.0, 1.0]))
            x, y = environment.position() or (0.0, 0.0)
            # BallRun: leave the corridor |y| < 2, or be faster than 2.5.
            assert np.allclose(step.observation[:2] * 10, [x, y], atol=1e-5)
            assert step.cost == simulator._env.task.calculate_cost()["cost"]
        assert step.cost == 1.0
        assert abs(y) > 2


def test_the_shared_generator_is_left_as_it_was() -> None:
    before = np.random.get_state()[1].tolist()
    with make("bullet/BallRun") as environment:
        environment.reset(1)
        environment.step(np.zeros(2))
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("name", ["bullet/BallRun", "bullet/DroneRun"])
def test_episodes_of_any_length_leave_nothing_behind(name: str) -> None:
    """A ball that has just touched the ground, a drone amid a fall: each had been seen to change the next."""
    with make(name) as environment:

        def steps(seed: int, number: int) -> list[list[float]]:
            dice, seen = np.random.default_rng(seed), [environment.reset(seed).tolist()]
            for _ in range(number):
                step = environment.step(dice.uniform(-1, 1, environment.action_dim))
                seen.append(step.observation.tolist())
                if step.terminated:
                    break
            return seen

        first = steps(0, 5)
        for length in (1, 3, 0, 60, 7, 2):
            steps(length, length)
            assert steps(0, 5) == first


def test_limits_of_steps_are_those_of_dsrl() -> None:
    for task, reference in scores.BULLET.items():
        with make(f"bullet/{task}") as environment:
            assert environment.max_steps == reference.steps
            assert environment.has_cost


def test_tasks_are_those_of_dsrl_and_take_no_changes() -> None:
    assert set(names("bullet")) == {f"bullet/{task}" for task in scores.BULLET}
    with pytest.raises(RecipeError, match="takes no gravity"):
        make("bullet/BallRun@gravity=2")


def test_a_picture_needs_no_display() -> None:
    with make("bullet/CarCircle") as environment:
        environment.reset(0)
        frame = environment.render(80, 60)
    assert (frame.shape, frame.dtype) == ((60, 80, 3), np.uint8)
    assert frame.std() > 1
