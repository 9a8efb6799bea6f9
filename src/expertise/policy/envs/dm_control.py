"""Tasks of the DeepMind Control suite (`dmc/walker-walk`, `dmc/cheetah-run`, …); a step gives from 0 to 1."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from expertise.policy.envs.physics import MuJoCoCamera, building, import_mujoco, without_log
from expertise.policy.envs.shifts import Shift, shift_mujoco
from expertise.policy.envs.simulator import BlownUpError, Family, Outcome, Simulator
from expertise.policy.extras import needed
from expertise.shapes import Float

_WHAT = "an environment of the DeepMind Control suite"
_LONGEST = 1000


class DMControl(Simulator):
    """A task of the suite; its observations are put end to end, in the suite's order."""

    def __init__(self, task: str) -> None:
        domain, _, name = task.partition("-")
        with building():
            self._env = _suite().load(domain, name, task_kwargs={"random": 0})
        specs = self._env.observation_spec().values()
        self.observation_dim = sum(int(np.prod(spec.shape)) for spec in specs)
        # A few tasks have no end of their own.
        self.max_steps = round(min(self._env._step_limit, _LONGEST))
        spec = self._env.action_spec()
        self.action_low, self.action_high = np.array(spec.minimum), np.array(spec.maximum)
        physics = self._env.physics
        self._camera = MuJoCoCamera(physics.model.ptr, physics.data.ptr, 0 if physics.model.ncam else -1)

    def reset(self, seed: int) -> Any:
        """Begin an episode."""
        self._env.task.random.seed(seed)
        return _flat(self._env.reset())

    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step."""
        try:
            # The suite itself counts what ran away.
            with without_log():
                step = self._env.step(action)
        except _control().PhysicsError:
            raise BlownUpError from None
        # The suite says that an episode ended with discount 0 where nothing can follow, else with 1.
        terminated = step.last() and not step.discount
        return Outcome(_flat(step), float(step.reward), terminated=terminated)

    def frame(self, width: int, height: int) -> Any:
        """A picture by the model's first camera."""
        return self._camera.frame(width, height)

    def shift(self, shift: Shift) -> None:
        """Change the dynamics."""
        physics = self._env.physics
        shift_mujoco(physics.model.ptr, physics.data.ptr, shift)

    def close(self) -> None:
        """Free what the simulator holds."""
        self._camera.close()
        self._env.close()


@functools.cache
def _suite() -> Any:
    import_mujoco(_WHAT)
    return needed("dm_control.suite", _WHAT)


@functools.cache
def _control() -> Any:
    return needed("dm_control.rl.control", _WHAT)


def _flat(step: Any) -> Any:
    return np.concatenate([np.ravel(part) for part in step.observation.values()])


def _tasks() -> list[str]:
    return [f"{domain}-{task}" for domain, task in _suite().ALL_TASKS]


DMC = Family(tasks=_tasks, build=DMControl, repeat=2)
