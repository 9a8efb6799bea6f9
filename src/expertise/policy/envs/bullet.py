"""Bullet-Safety-Gym's tasks that DSRL has data of (`bullet/BallRun`): a step outside the limits costs 1."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from expertise.policy.envs.adapter import GymnasiumSimulator, shared_generators_seeded
from expertise.policy.envs.simulator import Family, Outcome
from expertise.policy.extras import needed, quiet
from expertise.shapes import Float

_WHAT = "an environment of Bullet-Safety-Gym"
_PREFIX, _SUFFIX = "Safety", "-v0"
_DETERMINED = ("Run", "Circle")
"""Tasks whose steps draw nothing. In Reach, Push and Gather even a new simulation does not repeat itself."""
_NOWHERE = (0, 0, 1000)


class Bullet(GymnasiumSimulator):
    """A task; its randomness is its own, though the package draws it from generators shared by everyone."""

    has_cost = True

    def __init__(self, task: str) -> None:
        spec = _gymnasium().spec(f"{_PREFIX}{task}{_SUFFIX}")
        with quiet(), shared_generators_seeded(0):
            env = spec.make(disable_env_checker=True).unwrapped
            # The first reset is what later ones restore: it must not hang on a user's seed.
            env.reset()
        super().__init__(env, spec.max_episode_steps)
        self.action_high = np.ones(len(self.action_high))
        self.action_low = -self.action_high

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        # What the package's reset leaves: the motors' last commands, forces not yet applied, and contacts.
        agent, client = self._env.agent, self._env.bc
        agent.apply_action(np.zeros(agent.act_dim))
        client.resetBasePositionAndOrientation(agent.body_id, _NOWHERE, (0, 0, 0, 1))
        client.stepSimulation()
        with shared_generators_seeded(seed):
            return self._env.reset()[0]

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        return super().step(action)._replace(truncated=False)

    def frame(self, width: int, height: int) -> Any:
        """A picture by the software renderer, from where the task looks."""
        client, camera = self._env.bc, self._env.world.camera
        view = client.computeViewMatrixFromYawPitchRoll(
            cameraTargetPosition=camera.cam_base_pos,
            distance=camera.cam_dist,
            yaw=camera.cam_yaw,
            pitch=camera.cam_pitch,
            roll=0,
            upAxisIndex=2,
        )
        lens = client.computeProjectionMatrixFOV(fov=60, aspect=width / height, nearVal=0.1, farVal=100.0)
        pixels = client.getCameraImage(width, height, view, lens, renderer=client.ER_TINY_RENDERER)[2]
        return np.reshape(np.asarray(pixels, np.uint8), (height, width, 4))[:, :, :3]

    def position(self) -> tuple[float, float] | None:
        """Where the agent is."""
        x, y = self._env.agent.get_position()[:2]
        return float(x), float(y)


@functools.cache
def _gymnasium() -> Any:
    needed("bullet_safety_gym", _WHAT, "safety")
    return needed("gymnasium", _WHAT)


def _tasks() -> list[str]:
    ids = [spec.id for spec in _gymnasium().registry.values() if "bullet_safety_gym" in str(spec.entry_point)]
    tasks = [name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for name in ids]
    return [task for task in tasks if task.endswith(_DETERMINED)]


BULLET = Family(tasks=_tasks, build=Bullet)
