"""Environments of Gymnasium that are no family of ours: by id, by module:function, as objects."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import ExpertiseError, RecipeError
from expertise.policy.data import read, record
from expertise.policy.data.minari import _numbers
from expertise.policy.envs import Environment, Environments, Name, make
from expertise.policy.envs.adapter import row_of
from expertise.policy.envs.name import reference
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.seeds import alike, evaluate_seeds

gymnasium = pytest.importorskip("gymnasium", reason="`make setup-policy` installs it")
spaces = gymnasium.spaces

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)


class Cart(gymnasium.Env):
    """Five steps; adds up its actions; what it reports can be chosen."""

    def __init__(
        self,
        ends: str = "truncated",
        info: Callable[[int], dict[str, Any]] = lambda _: {},
        observation_space: Any = None,
        action_space: Any = None,
    ) -> None:
        self.action_space = action_space or spaces.Box(LOW, HIGH)
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.ends, self.info, self.closed = ends, info, False
        self.done: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.place = self.np_random.uniform(-1, 1, 3)
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.done.append(np.array(action))
        self.steps += 1
        self.place = self.place + 0.01 * np.sum(action)
        over = self.steps == 5
        terminated = over and self.ends in ("terminated", "both")
        truncated = over and self.ends in ("truncated", "both")
        return self.seen(), float(self.steps), terminated, truncated, self.info(self.steps)

    def seen(self) -> Any:
        if self.observation_space.shape == (3,):
            return self.place.copy()
        return self.observation_space.sample()

    def close(self) -> None:
        self.closed = True


def message(call: Callable[[], object]) -> str:
    with pytest.raises(ExpertiseError) as caught:
        call()
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


def episode(environment: Environment, seed: int) -> np.ndarray:
    seen, dice = [environment.reset(seed)], np.random.default_rng(seed)
    while True:
        step = environment.step(dice.uniform(-1, 1, environment.action_dim))
        seen.append(np.append(step.observation, [step.reward]))
        if step.terminated or step.truncated:
            return np.concatenate(seen)


def test_an_id_gives_what_gymnasium_gives() -> None:
    by_hand = gymnasium.make("Pendulum-v1")
    with make("Pendulum-v1") as environment:
        assert (environment.name, environment.observation_dim, environment.action_dim) == (
            "Pendulum-v1",
            3,
            1,
        )
        assert np.array_equal(environment.reset(7), by_hand.reset(seed=7)[0])
        for number, share in enumerate(np.linspace(-1.5, 1.5, 200)):
            step = environment.step(np.array([share]))
            seen, reward, terminated, truncated, _ = by_hand.step(np.float32([2 * np.clip(share, -1, 1)]))
            assert np.array_equal(step.observation, seen)
            assert step.reward == float(reward)
            assert (step.terminated, step.truncated) == (terminated, truncated) == (False, number == 199)
        assert environment.max_steps == 200
        assert not environment.has_cost


def test_the_three_ways_to_name_one_give_the_same_episodes(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "my_pendulum.py").write_text(
        "import gymnasium\n\ndef make():\n    return gymnasium.make('Pendulum-v1')\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    given = gymnasium.make("Pendulum-v1")
    expected = None
    for source in ("Pendulum-v1", "my_pendulum:make", given, lambda: gymnasium.make("Pendulum-v1")):
        with make(source) as environment:
            found = episode(environment, 3)
            assert np.array_equal(found, episode(environment, 3))
        expected = found if expected is None else expected
        assert np.array_equal(found, expected)
    assert sys.path == before
    given.step(np.zeros(1, np.float32))  # an environment that was given is left open


def test_actions_are_scaled_component_by_component_and_clipped() -> None:
    cart = Cart()
    with make(cart) as environment:
        environment.reset(0)
        for share in ((-1, -1), (1, 1), (0.5, 0), (9, -9)):
            environment.step(np.array(share, float))
    assert [done.tolist() for done in cart.done] == [[-2, 0], [2, 10], [1, 5], [2, 0]]
    assert cart.done[0].dtype == np.float32
    assert not cart.closed
    with make(lambda: cart):
        pass
    assert cart.closed


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_actions_keep_the_shape_of_the_box(shape: tuple[int, ...]) -> None:
    cart = Cart(action_space=spaces.Box(-1, 1, shape, np.float64))
    with make(cart) as environment:
        environment.reset(0)
        environment.step(np.zeros(environment.action_dim))
    assert (cart.done[0].shape, cart.done[0].dtype) == (shape, np.float64)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [("terminated", (True, False)), ("truncated", (False, True)), ("both", (True, False))],
)
def test_terminations_and_truncations_stay_apart(ends: str, expected: tuple[bool, bool]) -> None:
    with make(lambda: Cart(ends)) as environment:
        data = record(lambda: Cart(ends), episodes=2)
        environment.reset(0)
        steps = [environment.step(np.zeros(2)) for _ in range(5)]
    assert (steps[-1].terminated, steps[-1].truncated) == expected
    assert (data.terminals.sum(), data.timeouts.sum()) == (2 * expected[0], 2 * expected[1])
    assert data.terminals[4] == expected[0]


def test_what_has_no_limit_is_cut_and_that_is_said() -> None:
    with make(lambda: Cart("never")) as environment:
        environment.reset(0)
        number = 1
        while not (step := environment.step(np.zeros(2))).truncated:
            number += 1
        assert not step.terminated
        assert number == environment.max_steps == 1000
        assert any("no limit of steps" in note for note in environment.notes)
    with make(gymnasium.wrappers.TimeLimit(Cart("never"), 3)) as environment:
        assert (environment.max_steps, environment.notes) == (3, ())


OBSERVATIONS = [
    spaces.Dict({"place": spaces.Box(-1, 1, (2, 2)), "arm": spaces.Discrete(3, start=1)}),
    spaces.Dict(zoo=spaces.Box(-1, 1, (2,)), ant=spaces.MultiBinary(2)),
    spaces.Tuple(
        (spaces.MultiDiscrete([2, 3]), spaces.Dict({"b": spaces.Box(0, 1, ()), "a": spaces.Discrete(2)}))
    ),
    spaces.Box(0, 255, (2, 2, 3), np.uint8),
]


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_observations_become_rows_as_readers_make_them(space: Any) -> None:
    from expertise.policy.data.flatten import flattened

    space.seed(0)
    value = space.sample()

    def stacked(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: stacked(inner) for name, inner in part.items()}
        return tuple(stacked(inner) for inner in part) if isinstance(part, tuple) else np.asarray(part)[None]

    expected = flattened(_numbers(stacked(value), space, "x"), (), "observations", "x")[0].reshape(1, -1)[0]
    assert row_of(space, value).tolist() == expected.tolist()
    with make(lambda: Cart(observation_space=space)) as environment:
        first = environment.reset(1)
        assert first.shape == (environment.observation_dim,) == expected.shape
        assert np.array_equal(first, environment.reset(1))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("CartPole-v1", "CartPole-v1 has actions of Discrete"),
        (lambda: Cart(action_space=spaces.MultiBinary(2)), "has actions of MultiBinary"),
        (lambda: Cart(action_space=spaces.Dict({"a": spaces.Box(0, 1)})), "has actions of Dict"),
        (lambda: Cart(action_space=spaces.Box(0, 5, (2,), np.int64)), "has actions of int64"),
        (lambda: Cart(action_space=spaces.Box(np.float32([-1, -np.inf]), 1)), "without bounds (component 1)"),
        (lambda: Cart(observation_space=spaces.Text(3)), "has observations of Text"),
        (lambda: 3, "is no gymnasium.Env but of type builtins.int"),
        (object(), "is no gymnasium.Env"),
        ("Pendulmu-v1", "no environment 'Pendulmu-v1'"),
        ("Pendulum-v0", "no environment 'Pendulum-v0'"),
        ("bulet/BallRun-v0", "did you mean 'bullet'?"),
        ("no_such_module_here:make", "cannot import no_such_module_here"),
        ("math:sine", "math has no 'sine' | did you mean"),
        ("math:pi", "is no function"),
        ("math:sqrt", "math:sqrt cannot be made: TypeError"),
        ("Pendulum-v1@gravity=2", "takes no gravity"),
    ],
)
def test_what_does_not_suit_is_refused_in_one_line(source: Any, expected: str) -> None:
    assert expected in message(lambda: make(source))


def test_observations_that_their_space_does_not_announce_are_refused() -> None:
    with make(lambda: Cart(observation_space=spaces.Box(0, 1, (3,)))) as environment:
        environment.reset(0)
    cart = Cart()
    cart.observation_space = spaces.Box(0, 1, (3, 1))
    cart.seen = lambda: np.zeros(2)  # type: ignore[method-assign]
    with make(cart) as environment:
        assert "width 2, its observation_space has 3" in message(lambda: environment.reset(0))


def test_a_step_of_another_interface_is_refused() -> None:
    class Six(Cart):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:2], 0.0, False, False, {}

    with make(Six) as environment:
        environment.reset(0)
        assert "gives 6 values, not the 5" in message(lambda: environment.step(np.zeros(2)))


def test_costs_and_success_are_taken_from_info() -> None:
    def info(step: int) -> dict[str, Any]:
        return {"cost": np.array([0.5]), "is_success": True} if step == 4 else {}

    with make(lambda: Cart(info=info)) as environment:
        environment.reset(0)
        steps = [environment.step(np.zeros(2)) for _ in range(5)]
        assert [step.cost for step in steps] == [0, 0, 0, 0.5, 0]
        assert [step.success for step in steps] == [None, None, None, True, None]
        assert environment.has_cost
        assert environment.has_success
        assert any('info["cost"]' in note for note in environment.notes)


def test_a_cost_that_shows_late_counts_for_all_episodes() -> None:
    count = [0]

    def info(step: int) -> dict[str, Any]:
        count[0] += 1
        return {"cost": 1.0} if count[0] > 7 else {}

    said: list[str] = []
    data = record(Cart(info=info), episodes=3, say=said.append)
    assert data.costs is not None
    assert data.costs.tolist() == [0.0] * 7 + [1.0] * 8
    assert any('info["cost"]' in line for line in said)


def test_seeds_reach_spaces_and_shared_generators_which_are_put_back() -> None:
    class Sloppy(Cart):
        def reset(self, **_: Any) -> Any:
            self.steps, self.place = 0, np.array([random.random(), np.random.rand(), 0.0])
            return self.place.copy(), {}

    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    with make(Sloppy) as environment:
        assert np.array_equal(environment.reset(5), environment.reset(5))
        assert not np.array_equal(environment.reset(5), environment.reset(6))
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index, union-attr]


def test_pictures_where_the_environment_makes_them() -> None:
    with make("Pendulum-v1") as environment:
        environment.reset(0)
        if importlib.util.find_spec("pygame"):
            assert environment.render().ndim == 3
        else:
            assert "makes no pictures here" in message(environment.render)
    with make(Cart) as environment:
        assert "makes no pictures" in message(environment.render)


def test_names_that_only_gymnasium_knows() -> None:
    assert str(Name.parse("Pendulum-v1@repeat=2")) == "Pendulum-v1@repeat=2"
    assert Name.parse("my.envs:make").family == ""
    with make("Pendulum-v1@repeat=3") as environment:
        assert environment.max_steps == 67
    gymnasium.register("Unversioned", lambda: Cart())
    try:
        assert Name.parse("Unversioned").task == "Unversioned"
        with make("Unversioned") as environment:
            assert environment.action_dim == 2
    finally:
        del gymnasium.registry["Unversioned"]


def test_a_recipe_names_what_can_be_found_again() -> None:
    assert reference(gymnasium.make("Pendulum-v1")) == "Pendulum-v1"
    assert reference(Cart) == f"{Cart.__module__}:Cart"
    for source in (Cart(), lambda: Cart(), gymnasium.make("Pendulum-v1", g=3.0)):
        assert "a recipe is text" in message(lambda source=source: reference(source))


# --- several side by side, and a policy in them ---------------------------------------------------------


def test_a_callable_must_make_a_new_one_each_time() -> None:
    cart = Cart()
    assert "the same environment every time" in message(lambda: Environments(lambda: cart, 2))
    with Environments(cart, 4) as row:
        assert len(row) == 1


def test_an_object_gives_the_episodes_that_a_callable_gives(make_policy: Callable[..., Any]) -> None:
    policy = make_policy()
    said: list[str] = []
    found = [
        evaluate(policy, EvaluationConfig(environment=source, episodes=3, parallel=number), said.append)
        for source, number in ((Cart, 3), (lambda: Cart(info=lambda _: {"cost": 1}), 2), (Cart(), 3))
    ]
    totals = [[episode.total for episode in each.episodes] for each in found]
    assert totals == [[15.0] * 3] * 3
    assert [each.has_cost for each in found] == [False, True, False]
    assert found[1].summary()["cost"] == 5.0
    assert sum('info["cost"]' in line for line in said) == 1
    assert found[0].environment.endswith(":Cart")


def test_a_cost_that_one_seed_or_policy_alone_meets_is_0_for_the_others(
    make_policy: Callable[..., Any],
) -> None:
    met = iter([{}] * 10 + [{"cost": 2.0}] * 5 + [{}] * 10)
    config = EvaluationConfig(environment=Cart(info=lambda _: next(met)), episodes=1)
    found = evaluate_seeds(make_policy(), config, [0, 1, 2, 3, 4])
    assert [one.summary()["cost"] for one in found.by_seed.values()] == [0, 0, 10, 0, 0]
    assert found.summary()["cost"] == 2.0
    other = evaluate_seeds(make_policy(), dataclasses.replace(config, environment=Cart), [0])
    assert "cost" not in other.summary()
    assert alike({"one": found, "other": other})["other"].summary()["cost"] == 0.0


# --- recorded data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cart.hdf5", "cart-v0"])
def test_what_is_recorded_declares_its_bounds_and_reads_back(target: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py" if target.endswith("hdf5") else "minari")
    data = record(Cart, episodes=4, seed=1, to=tmp_path / "new" / target)
    again = read(tmp_path / "new" / target)
    assert len(data.trajectories()) == len(again.trajectories()) == 4
    assert np.abs(data.actions - again.actions).max() < 1e-6
    assert np.abs(data.actions).max() > 0.9
    for name in ("observations", "next_observations", "rewards", "terminals", "timeouts"):
        assert np.array_equal(data.arrays()[name], again.arrays()[name])
    assert not any("assumed" in note for note in again.notes)
    if target.endswith("hdf5"):
        import h5py

        with h5py.File(tmp_path / "new" / target) as file:
            assert file.attrs["action_low"].tolist() == LOW.tolist()
            assert file["actions"][:, 1].min() >= 0
            assert file["actions"][:, 1].max() > 5
    same = record(Cart, episodes=4, seed=1)
    assert all(np.array_equal(same.arrays()[name], array) for name, array in data.arrays().items())


def test_a_callable_acts_in_the_units_that_are_said() -> None:
    half = record(Cart, lambda _: [1.0, 5.0], episodes=1, units="environment")
    assert half.actions[0].tolist() == [0.5, 0.0]
    assert record(Cart, lambda _: [0.25, 1.0], episodes=1).actions[0].tolist() == [0.25, 1.0]
    assert 'units="environment"' in message(lambda: record(Cart, lambda _: [1.0, 5.0], episodes=1))
    assert "must lie in" in message(lambda: record(Cart, lambda _: [3, 5], episodes=1, units="environment"))
    assert "gives 1 numbers" in message(lambda: record(Cart, lambda _: [0.5], episodes=1))
    assert "nan" in message(lambda: record(Cart, lambda _: [np.nan, 0], episodes=1))
    assert "neither 'random' nor" in message(lambda: record(Cart, "scripted", episodes=1))
    assert "<name>.hdf5" in message(lambda: record(Cart, episodes=1, to="cart.npz"))


def test_data_are_held_against_the_environment_that_they_are_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        read("x.npz", environment="walker")
    arrays = {
        "observations": np.zeros((4, 3)),
        "actions": np.array([[-2.0], [2.0], [1.0], [0.0]]),
        "rewards": np.zeros(4),
        "timeouts": np.arange(4) == 3,
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    data = read(tmp_path / "mine.npz", environment=gymnasium.make("Pendulum-v1"))
    assert data.actions.ravel().tolist() == [-1.0, 1.0, 0.5]
    np.savez(tmp_path / "other.npz", **{**arrays, "observations": np.zeros((4, 2))})
    assert "2 wide, those of Pendulum-v1 3" in message(
        lambda: read(tmp_path / "other.npz", environment="Pendulum-v1")
    )
