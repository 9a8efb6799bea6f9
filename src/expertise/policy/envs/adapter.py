"""Any `gymnasium.Env` as a simulator: by an id of Gymnasium, by `module:function`, or as an object."""

from __future__ import annotations

import contextlib
import functools
import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from expertise.errors import DeviceError, ExpertiseError, RecipeError, first_line, nearest
from expertise.policy.envs.families import FAMILIES
from expertise.policy.envs.name import importable_here, name_of
from expertise.policy.envs.simulator import Outcome, Simulator
from expertise.policy.extras import needed, quiet
from expertise.shapes import Float

_WHAT = "an environment of Gymnasium"
_LONGEST = 1000
"""Steps of an episode where neither the environment nor its registration sets a limit."""
_UNBOUNDED = 1e30
"""Bounds of actions from here on count as infinite: some spaces use the largest number of their type."""
_COST, _SUCCESS = "cost", ("success", "is_success")
"""Keys of `info` that are read."""


class GymnasiumSimulator(Simulator):
    """A `gymnasium.Env` with a Box of actions; families override what differs.

    Args:
        env: the environment.
        max_steps: limit of steps in an episode.
    """

    def __init__(self, env: Any, max_steps: int) -> None:
        self._env = env
        self.max_steps = max_steps
        space = env.observation_space
        self.observation_dim = width_of(space)
        self._row: Callable[[Any], Any] = (
            np.ravel if isinstance(space, _spaces().Box) else functools.partial(row_of, space)
        )
        self.action_low = np.asarray(env.action_space.low, np.float64).ravel()
        self.action_high = np.asarray(env.action_space.high, np.float64).ravel()

    def reset(self, seed: int) -> Any:
        """Begin the episode of a seed."""
        return self._row(self._env.reset(seed=seed)[0])

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step.

        Raises:
            RecipeError: the environment does not follow Gymnasium's interface.
        """
        given = self._env.step(self.command(action))
        if len(given) != 5:
            raise RecipeError(
                f"{name_of(self._env)}: a step gives {len(given)} values, not the 5 of Gymnasium",
                'wrap it to give observation, reward, terminated, truncated and info (with info["cost"])',
            )
        observation, reward, terminated, truncated, info = given
        return Outcome(
            self._row(observation),
            _number(reward),
            self.cost(info),
            bool(terminated),
            self.success(info),
            bool(truncated),
        )

    def command(self, action: Float[np.ndarray, " action"]) -> Any:
        """An action in the form that the environment takes."""
        return action

    def cost(self, info: dict[str, Any]) -> float:
        """What a step costs."""
        return _number(info.get(_COST, 0.0))

    def success(self, info: dict[str, Any]) -> bool | None:
        """Whether the task is done; None where the environment does not say."""
        return None

    def frame(self, width: int, height: int) -> Any:
        """A picture in the environment's own size."""
        return self._env.render()

    def identity(self) -> int:
        """That of the environment beneath all wrappers."""
        return id(self._env.unwrapped)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._env.close()


class AnyGymnasium(GymnasiumSimulator):
    """An environment that is not one of our families: its spaces and its `info` are checked.

    Costs are `info["cost"]`, success is `info["success"]` or `info["is_success"]`; `has_cost` and
    `has_success` become True once a step reports them. Observations of type Dict, Tuple, Discrete, … become
    rows as the readers of recorded data make them. Terminations and truncations stay apart.

    Args:
        env: the environment.
        name: used in messages.
        owned: close it when the simulator is closed.

    Raises:
        RecipeError: it is no `gymnasium.Env`, its actions are no bounded Box of real numbers, or its
            observations are no numbers.
    """

    def __init__(self, env: Any, name: str, *, owned: bool = True) -> None:
        _require_usable(env, name)
        limit = _limit_of(env)
        super().__init__(env, limit or _LONGEST)
        self._name, self._owned = name, owned
        self._space, self._actions = env.observation_space, env.action_space
        self.declares_bounds = True
        if limit is None:
            self.notes = (
                f"note: {name} sets no limit of steps: episodes are cut after {_LONGEST:,} (another limit: "
                "gymnasium.wrappers.TimeLimit)",
            )

    def reset(self, seed: int) -> Any:
        """Begin the episode of a seed, which also seeds the spaces and, meanwhile, the shared generators."""
        for space in (self._space, self._actions):
            space.seed(seed)
        with shared_generators_seeded(seed):
            first = self._row(self._env.reset(seed=seed)[0])
        if len(first) != self.observation_dim:
            raise RecipeError(
                f"{self._name} gives observations of width {len(first)}, its observation_space has "
                f"{self.observation_dim}"
            )
        return first

    def command(self, action: Float[np.ndarray, " action"]) -> Any:
        """An action in the type and shape of the environment's Box, within its bounds."""
        box = self._actions
        return action.astype(box.dtype).reshape(box.shape).clip(box.low, box.high)

    def cost(self, info: dict[str, Any]) -> float:
        """`info["cost"]`, 0 where there is none."""
        self.has_cost |= _COST in info
        return super().cost(info)

    def success(self, info: dict[str, Any]) -> bool | None:
        """`info["success"]` or `info["is_success"]`, where there is one."""
        found = next((bool(info[key]) for key in _SUCCESS if key in info), None)
        self.has_success |= found is not None
        return found

    def frame(self, width: int, height: int) -> Any:
        """A picture in the environment's own size.

        Raises:
            DeviceError: the environment makes no pictures, or lacks what it needs for them.
        """
        if self._env.render_mode != "rgb_array":
            raise DeviceError(
                f"{self._name} makes no pictures", 'make it with render_mode="rgb_array", if it has that mode'
            )
        try:
            with quiet():
                return np.asarray(self._env.render(), np.uint8)
        except Exception as error:  # each environment has its own
            raise DeviceError(f"{self._name} makes no pictures here: {first_line(error)}") from None

    def close(self) -> None:
        """Close the environment, unless it was given as an object: that is left to its owner."""
        if self._owned:
            self._env.close()


def width_of(space: Any) -> int:
    """Numbers in an observation of a space, as `row_of` puts them."""
    return int(_spaces().flatdim(space))


def row_of(space: Any, observation: Any) -> Any:
    """An observation as one row of numbers, as the readers of recorded data put it.

    Parts of a Dict stand in the order of their names, those of a Tuple in their own; one of n choices becomes
    n numbers, all 0 but for a 1.
    """
    spaces = _spaces()
    if isinstance(space, spaces.Dict):
        names = sorted(space.spaces, key=str)
        return np.concatenate([row_of(space.spaces[name], observation[name]) for name in names])
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observation, strict=True)
        return np.concatenate([row_of(inner, part) for inner, part in parts])
    if isinstance(space, spaces.Box):
        return np.ravel(observation)
    return spaces.flatten(space, observation)


@functools.cache
def _spaces() -> Any:
    return needed("gymnasium", _WHAT).spaces


@contextlib.contextmanager
def shared_generators_seeded(seed: int) -> Iterator[None]:
    """Seed the generators that NumPy and Python share with everyone, and put them back at the end."""
    before = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


def made(text: str) -> Any:
    """The environment of an id that Gymnasium knows, of `module:function` or of `module:id`.

    Raises:
        RecipeError: there is none, or making it fails; the line says why.
        MissingExtra: Gymnasium is not installed.
    """
    gymnasium = needed("gymnasium", _WHAT)
    with importable_here():
        module, colon, attribute = text.rpartition(":")
        if colon and attribute.replace(".", "").isidentifier():
            return called(_attribute(module, attribute, text), text)
        return called(lambda: _registered(gymnasium, text), text)


def called(make: Callable[[], Any], name: str) -> Any:
    """What a function without arguments makes; what goes wrong in it is told in one line."""
    try:
        with quiet():
            return make()
    except ExpertiseError:
        raise
    except Exception as error:  # whatever the function raises
        raise RecipeError(f"{name} cannot be made: {type(error).__name__}: {first_line(error)}") from error


def _attribute(module: str, attribute: str, text: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the module's own, too
        raise RecipeError(f"{text!r}: cannot import {module}: {first_line(error)}") from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise RecipeError(f"{text!r}: {module} has no {attribute!r}", nearest(attribute, vars(found)))
        found = getattr(found, name)
    if not callable(found):
        raise RecipeError(
            f"{text!r} is no function", "name a function without arguments that makes the environment"
        )
    return found


def _registered(gymnasium: Any, text: str) -> Any:
    """An environment by its id, with pictures where it can make them."""
    registration = gymnasium.envs.registration
    try:
        spec = gymnasium.spec(text)
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco."):
            from expertise.policy.envs.physics import import_mujoco

            import_mujoco(_WHAT)  # it must know how to render before Gymnasium imports it
        maker = (
            spec.entry_point
            if callable(spec.entry_point)
            else registration.load_env_creator(spec.entry_point)
        )
        modes = getattr(maker, "metadata", {}).get("render_modes", ())
        pictures = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}
        return gymnasium.make(text, disable_env_checker=True, **pictures)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        raise _unknown(gymnasium, text, error) from None


def _unknown(gymnasium: Any, text: str, error: Exception) -> RecipeError:
    family, slash, _ = text.partition("/")
    near = nearest(family, FAMILIES) if slash else nearest(text, gymnasium.registry)
    hint = near if near.startswith("did you mean") else "write an id that Gymnasium knows, or family/task"
    return RecipeError(f"no environment {text!r}: {first_line(error)}", hint)


def _limit_of(env: Any) -> int | None:
    """The limit of steps that its registration or a TimeLimit around it sets."""
    if env.spec is not None and env.spec.max_episode_steps:
        return int(env.spec.max_episode_steps)
    key = "_max_episode_steps"
    found = env.get_wrapper_attr(key) if env.has_wrapper_attr(key) else None
    return int(found) if found else None


def _require_usable(env: Any, name: str) -> None:
    gymnasium = needed("gymnasium", _WHAT)
    if not isinstance(env, gymnasium.Env):
        raise RecipeError(
            f"{name} is no gymnasium.Env but of type {type(env).__module__}.{type(env).__name__}",
            "give an id, an environment, or a function without arguments that makes one",
        )
    box = env.action_space
    if not isinstance(box, gymnasium.spaces.Box):
        raise RecipeError(
            f"{name} has actions of {type(box).__name__}; policies act in a Box of real numbers"
        )
    if box.dtype.kind != "f":
        raise RecipeError(f"{name} has actions of {box.dtype}; policies act in a Box of real numbers")
    low, high = np.ravel(box.low), np.ravel(box.high)
    unbounded = np.flatnonzero(~((np.abs(low) < _UNBOUNDED) & (np.abs(high) < _UNBOUNDED)))
    if len(unbounded):
        raise RecipeError(
            f"{name} has actions without bounds (component {unbounded[0]}): [-1, 1] cannot be scaled to them",
            "give it an action space with bounds, such as by gymnasium.wrappers.TransformAction",
        )
    if not len(low):
        raise RecipeError(f"{name} has actions without components")
    _require_numbers(gymnasium.spaces, env.observation_space, name)


def _require_numbers(spaces: Any, space: Any, name: str) -> None:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        for part in inner:
            _require_numbers(spaces, part, name)
    elif not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise RecipeError(
            f"{name} has observations of {type(space).__name__}, which are no row of numbers",
            "leave them out, such as by gymnasium.wrappers.FilterObservation",
        )


def _number(value: Any) -> float:
    """A reward or a cost, which some environments give as an array with one number."""
    return float(value) if isinstance(value, int | float) else float(np.asarray(value).item())
