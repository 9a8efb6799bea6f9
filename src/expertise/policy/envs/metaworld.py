"""Meta-World's 50 tasks of a robot arm (`metaworld/push-v3`): the goal is seen, success is reported.

The paper's appendix runs on them. Each has a scripted expert; see `expertise.policy.data.teachers`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from expertise.policy.envs.physics import MuJoCoCamera, building, import_mujoco, stepping
from expertise.policy.envs.shifts import Shift, shift_mujoco
from expertise.policy.envs.simulator import Family, Outcome, Simulator
from expertise.policy.extras import needed
from expertise.shapes import Float

_WHAT = "an environment of Meta-World"


class MetaWorld(Simulator):
    """A task with the goal in its observation; places of goal and object are drawn anew by each seed."""

    has_success = True

    def __init__(self, task: str) -> None:
        with building():
            self._env = _tables().ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
        # By itself an environment keeps the first places that it drew.
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self.observation_dim = int(self._env.observation_space.shape[0])
        self.max_steps = int(self._env.max_path_length)
        self.action_low = np.asarray(self._env.action_space.low, np.float64)
        self.action_high = np.asarray(self._env.action_space.high, np.float64)
        self._camera = MuJoCoCamera(self._env.model, self._env.data, "corner2")

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        self._env.seed(seed)
        return self._env.reset()[0]

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        with stepping(self._env.data):
            observation, reward, _, _, info = self._env.step(action)
        return Outcome(observation, float(reward), success=bool(info["success"]))

    def frame(self, width: int, height: int) -> Any:
        """A picture from a corner of the table."""
        return self._camera.frame(width, height)

    def shift(self, shift: Shift) -> None:
        """Change the dynamics."""
        shift_mujoco(self._env.model, self._env.data, shift)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._camera.close()
        self._env.close()


@functools.cache
def _tables() -> Any:
    import_mujoco(_WHAT)
    return needed("metaworld.env_dict", _WHAT)


def _tasks() -> list[str]:
    return list(_tables().ALL_V3_ENVIRONMENTS)


METAWORLD = Family(tasks=_tasks, build=MetaWorld)
