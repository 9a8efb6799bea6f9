"""Gymnasium's MuJoCo robots, as they are (`gym/HalfCheetah-v5`) and with a limit on speed (`velocity/…`)."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from expertise.policy.envs.adapter import GymnasiumSimulator
from expertise.policy.envs.physics import MuJoCoCamera, building, import_mujoco, stepping
from expertise.policy.envs.shifts import Shift, shift_mujoco
from expertise.policy.envs.simulator import Family, Outcome
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


class GymnasiumMuJoCo(GymnasiumSimulator):
    """A MuJoCo task of Gymnasium.

    Args:
        task: its id.
        speed_limit: a faster step costs 1; None: nothing has a cost.
    """

    def __init__(self, task: str, speed_limit: float | None = None) -> None:
        gymnasium = _gymnasium()
        with building():
            # The bare simulator: limits and checks are ours.
            env = gymnasium.make(task, disable_env_checker=True).unwrapped
        super().__init__(env, gymnasium.spec(task).max_episode_steps)
        self._limit = speed_limit
        self.has_cost = speed_limit is not None
        model = self._env.model
        tracked = [model.camera(number).name for number in range(model.ncam)]
        self._camera = MuJoCoCamera(model, self._env.data, "track" if "track" in tracked else -1)

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        with stepping(self._env.data):
            return super().step(action)

    def cost(self, info: dict[str, Any]) -> float:
        """1 above the speed limit, where there is one."""
        return 0.0 if self._limit is None else float(_speed(info) > self._limit)

    def frame(self, width: int, height: int) -> Any:
        """A picture by the camera that follows the robot, where it has one."""
        return self._camera.frame(width, height)

    def shift(self, shift: Shift) -> None:
        """Change the dynamics."""
        shift_mujoco(self._env.model, self._env.data, shift)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._camera.close()
        super().close()


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
