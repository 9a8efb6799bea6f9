"""Gymnasium's MuJoCo robots, as they are (`gym/HalfCheetah-v5`) and with a limit on speed (`velocity/…`)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from expertise.policy.envs.physics import MuJoCoCamera, building, import_mujoco, stepping
from expertise.policy.envs.shifts import Shift, shift_mujoco
from expertise.policy.envs.simulator import Family, Outcome, Simulator
from expertise.policy.extras import needed
from expertise.shapes import Float

_WHAT = "a MuJoCo environment of Gymnasium"
_VERSION = 5

SPEED_LIMITS = {
    "HalfCheetah-v5": 3.2096,
    "Hopper-v5": 0.7402,
    "Walker2d-v5": 2.3415,
    "Ant-v5": 2.6222,
    "Swimmer-v5": 0.2282,
    "Humanoid-v5": 1.4149,
}
"""Metres per second, of Safety-Gymnasium's velocity tasks (version 1): a faster step costs 1."""


class GymnasiumMuJoCo(Simulator):
    """A MuJoCo task of Gymnasium.

    Args:
        task: its id.
        speed_limit: a faster step costs 1; None: nothing has a cost.
    """

    def __init__(self, task: str, speed_limit: float | None = None) -> None:
        gymnasium = _gymnasium()
        with building():
            # The bare simulator: limits and checks are ours.
            self._env = gymnasium.make(task, disable_env_checker=True).unwrapped
        self._limit = speed_limit
        self.has_cost = speed_limit is not None
        self.observation_dim = math.prod(self._env.observation_space.shape)
        self.max_steps = gymnasium.spec(task).max_episode_steps
        self.action_low = np.asarray(self._env.action_space.low, np.float64)
        self.action_high = np.asarray(self._env.action_space.high, np.float64)
        model = self._env.model
        tracked = [model.camera(number).name for number in range(model.ncam)]
        self._camera = MuJoCoCamera(model, self._env.data, "track" if "track" in tracked else -1)

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        return self._env.reset(seed=seed)[0].ravel()

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        with stepping(self._env.data):
            observation, reward, terminated, _, info = self._env.step(action)
        cost = float(_speed(info) > self._limit) if self._limit is not None else 0.0
        return Outcome(observation.ravel(), float(reward), cost, bool(terminated))

    def frame(self, width: int, height: int) -> Any:
        """A picture by the camera that follows the robot, where it has one."""
        return self._camera.frame(width, height)

    def shift(self, shift: Shift) -> None:
        """Change the dynamics."""
        shift_mujoco(self._env.model, self._env.data, shift)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._camera.close()
        self._env.close()


def _speed(info: dict[str, Any]) -> float:
    """Robots on a line report one velocity, those on a plane two."""
    return math.hypot(info["x_velocity"], info.get("y_velocity", 0.0))


@functools.cache
def _gymnasium() -> Any:
    import_mujoco(_WHAT)
    return needed("gymnasium", _WHAT)


def _tasks() -> list[str]:
    specs = _gymnasium().registry.values()
    found = [s for s in specs if str(s.entry_point).startswith("gymnasium.envs.mujoco.")]
    return sorted(spec.id for spec in found if spec.version == _VERSION)


def _with_limit(task: str) -> GymnasiumMuJoCo:
    return GymnasiumMuJoCo(task, SPEED_LIMITS[task])


def _limited() -> list[str]:
    return [task for task in _tasks() if task in SPEED_LIMITS]


GYM = Family(tasks=_tasks, build=GymnasiumMuJoCo)
VELOCITY = Family(tasks=_limited, build=_with_limit)
