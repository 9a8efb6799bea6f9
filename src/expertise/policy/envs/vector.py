"""Several environments of one name, side by side, each at its own episode."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np

from expertise.errors import RecipeError
from expertise.policy.envs.environment import Environment, Source
from expertise.shapes import Bool, Float


class Steps(NamedTuple):
    """What one decision of each gives; of one whose episode is over: its last observation, and zeros."""

    observations: Float[np.ndarray, "environments observation"]
    """float32."""
    rewards: Float[np.ndarray, " environments"]
    costs: Float[np.ndarray, " environments"]
    terminated: Bool[np.ndarray, " environments"]
    truncated: Bool[np.ndarray, " environments"]
    successes: Bool[np.ndarray, " environments"]
    """Whether the task is done now; False too where it has no such thing."""


class Environments:
    """A row of environments in this process, so that a policy is asked once for all of them.

    Those whose episode is over rest until the next reset. `gymnasium.vector.SyncVectorEnv` lets none rest: it
    begins other episodes at once, or refuses to step on.

    Args:
        source: see `Environment`.
        number: how many; of an environment given as an object there is one.

    Raises:
        RecipeError, MissingExtra: as `Environment`; or a callable returns the same environment again.
    """

    def __init__(self, source: Source, number: int) -> None:
        shared = not isinstance(source, str) and not callable(source)
        self._environments = [Environment(source) for _ in range(1 if shared else number)]
        if len({each.simulated for each in self._environments}) < len(self._environments):
            raise RecipeError(
                f"{self._environments[0].name} returns the same environment every time",
                "make a new one in each call, or give the environment itself",
            )
        first, number = self._environments[0], len(self._environments)
        self.name, self.max_steps = first.name, first.max_steps
        self.observation_dim, self.action_dim = first.observation_dim, first.action_dim
        self.running: Bool[np.ndarray, " environments"] = np.zeros(number, bool)
        """Which are amid an episode."""
        self.num_blown_up = 0
        """Episodes that ended because the simulation ran away."""
        self._observations = np.zeros((number, self.observation_dim), np.float32)

    @property
    def has_cost(self) -> bool:
        """Whether steps may cost something; see `Environment.has_cost`."""
        return any(each.has_cost for each in self._environments)

    @property
    def has_success(self) -> bool:
        """Whether steps report success; see `Environment.has_success`."""
        return any(each.has_success for each in self._environments)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, a line each."""
        return tuple(dict.fromkeys(note for each in self._environments for note in each.notes))

    def __len__(self) -> int:
        return len(self._environments)

    def __getitem__(self, index: int) -> Environment:
        """One of them, to look at."""
        return self._environments[index]

    def __enter__(self) -> Environments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reset(self, seeds: Sequence[int]) -> Float[np.ndarray, "environments observation"]:
        """Begin an episode in the first `len(seeds)` environments; the others rest.

        Args:
            seeds: of an episode each, at most as many as there are environments.

        Returns:
            First observations, float32; of those that rest: their last, or zeros.
        """
        if len(seeds) > len(self):
            raise ValueError(f"{len(seeds)} seeds for {len(self)} environments")
        self.running[:] = False
        for index, seed in enumerate(seeds):
            self._observations[index] = self._environments[index].reset(seed)
            self.running[index] = True
        return self._observations.copy()

    def step(self, actions: Float[np.ndarray, "environments action"]) -> Steps:
        """Do one action in each environment that is amid an episode.

        Args:
            actions: what lies outside [-1, 1] is clipped; those of resting ones are not looked at.
        """
        rewards, costs = np.zeros((2, len(self)))
        terminated, truncated, successes = np.zeros((3, len(self)), bool)
        for index in np.flatnonzero(self.running):
            step = self._environments[index].step(actions[index])
            self._observations[index] = step.observation
            rewards[index], costs[index] = step.reward, step.cost
            terminated[index], truncated[index] = step.terminated, step.truncated
            successes[index] = bool(step.success)
            self.num_blown_up += step.blown_up
        self.running &= ~(terminated | truncated)
        return Steps(self._observations.copy(), rewards, costs, terminated, truncated, successes)

    def close(self) -> None:
        """Free what the simulators hold."""
        for environment in self._environments:
            environment.close()
