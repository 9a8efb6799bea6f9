"""Meta-World's 50 tasks of a robot arm (`metaworld/push-v3`): the goal is seen, success is reported.

The paper's appendix runs on them. Each has a scripted expert; see `expertise.policy.data.teachers`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from expertise.policy.envs.adapter import GymnasiumSimulator
from expertise.policy.envs.physics import MuJoCoCamera, building, import_mujoco, stepping
from expertise.policy.envs.shifts import Shift, shift_mujoco
from expertise.policy.envs.simulator import Family, Outcome
from expertise.policy.extras import needed
from expertise.shapes import Float

_WHAT = "an environment of Meta-World"


class MetaWorld(GymnasiumSimulator):
    """A task with the goal in its observation; places of goal and object are drawn anew by each seed."""

    has_success = True

    def __init__(self, task: str) -> None:
        with building():
            env = _tables().ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
        # By itself an environment keeps the first places that it drew.
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        super().__init__(env, int(env.max_path_length))
        self._camera = MuJoCoCamera(env.model, env.data, "corner2")

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        self._env.seed(seed)
        return self._env.reset()[0]

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        with stepping(self._env.data):
            return super().step(action)._replace(terminated=False, truncated=False)

    def success(self, info: dict[str, Any]) -> bool:
        """Whether the task is done."""
        return bool(info["success"])

    def frame(self, width: int, height: int) -> Any:
        """A picture from a corner of the table."""
        return self._camera.frame(width, height)

    def shift(self, shift: Shift) -> None:
        """Change the dynamics."""
        shift_mujoco(self._env.model, self._env.data, shift)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._camera.close()
        super().close()


@functools.cache
def _tables() -> Any:
    import_mujoco(_WHAT)
    return needed("metaworld.env_dict", _WHAT)


def _tasks() -> list[str]:
    return list(_tables().ALL_V3_ENVIRONMENTS)


METAWORLD = Family(tasks=_tasks, build=MetaWorld)
