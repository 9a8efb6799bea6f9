"""One interface to every environment: float32 observations, actions in [-1, 1], costs, seeded episodes."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from expertise.errors import RecipeError, nearest
from expertise.policy.envs.families import FAMILIES
from expertise.policy.envs.name import Name, name_of
from expertise.policy.envs.simulator import BlownUpError, Family, Outcome, Simulator
from expertise.shapes import Float


class Step(NamedTuple):
    """What one decision gives."""

    observation: Float[np.ndarray, " observation"]
    """float32."""
    reward: float
    """Summed over the repeated action."""
    cost: float
    """Likewise; 0 where the environment has no costs."""
    terminated: bool
    """Nothing can follow: what comes next is worth nothing."""
    truncated: bool
    """The episode was cut, by the limit of steps or by the environment: more could have come."""
    success: bool | None
    """Whether the task is done now; None where it has no such thing."""
    blown_up: bool
    """The simulation ran away, which ended the episode."""


Source = Any
"""A name (see `Name`), a `gymnasium.Env`, or a callable without arguments that makes one."""


class Environment:
    """One task as a policy sees it.

    Args:
        source: a name (see `Name`; families and tasks are checked), a `gymnasium.Env`, which is left open at
            the end, or a callable that makes one.

    Raises:
        RecipeError: unknown family, task or id (the nearest is named), a change that the family does not
            take, or an environment whose actions or observations do not suit a policy.
        MissingExtra: its package is not installed.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.action_repeat, self._simulator = _built(source)
        self.observation_dim = self._simulator.observation_dim
        self.action_dim = len(self._simulator.action_low)
        # A last decision may be cut short, so the number is rounded up.
        self.max_steps = -(-self._simulator.max_steps // self.action_repeat)
        low, high = self._simulator.action_low, self._simulator.action_high
        self._middle, self._half = (high + low) / 2, (high - low) / 2
        self._simulated: int | None = None
        self._seen: Any = None

    @property
    def has_cost(self) -> bool:
        """Whether steps may cost something; in an environment of Gymnasium, whether one has."""
        return self._simulator.has_cost

    @property
    def has_success(self) -> bool:
        """Whether steps report success; for Gymnasium's environments, whether a step has reported it."""
        return self._simulator.has_success

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, a line each; that costs are read from `info` once a step has reported one."""
        reported = self.has_cost and self.declared_bounds is not None  # families know of costs beforehand
        costs = (f'note: costs are info["cost"] of {self.name}',) if reported else ()
        return self._simulator.notes + costs

    @property
    def simulated(self) -> int:
        """Identity of what is simulated: equal for two environments that step the same object."""
        return self._simulator.identity()

    @property
    def declared_bounds(self) -> tuple[list[float], list[float]] | None:
        """Bounds, lower and upper, that files of recorded actions declare; None: they are in [-1, 1]."""
        return self.action_bounds if self._simulator.declares_bounds else None

    @property
    def action_bounds(self) -> tuple[list[float], list[float]]:
        """Lower and upper bounds of the simulator's own actions, to which [-1, 1] is scaled."""
        return self._simulator.action_low.tolist(), self._simulator.action_high.tolist()

    def __enter__(self) -> Environment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reset(self, seed: int) -> Float[np.ndarray, " observation"]:
        """Begin the episode that a seed stands for: the same one whenever it is asked for.

        Args:
            seed: from 0 to 2³² - 1.

        Returns:
            The first observation, float32.
        """
        self._seen = self._simulator.reset(seed)
        self._simulated = 0
        return np.array(self._seen, np.float32)

    def step(self, action: Float[np.ndarray, " action"]) -> Step:
        """Do one action, `action_repeat` times over.

        Args:
            action: what lies outside [-1, 1] is clipped.

        Raises:
            RuntimeError: the episode is over, or none was begun.
        """
        if self._simulated is None:
            raise RuntimeError(f"{self.name}: reset before you step")
        scaled = self._middle + self._half * np.asarray(action, np.float64).clip(-1.0, 1.0)
        reward = cost = 0.0
        blown_up = False
        for _ in range(self.action_repeat):
            try:
                outcome = self._simulator.step(scaled)
            except BlownUpError:
                blown_up = True
                outcome = Outcome(
                    self._seen, 0.0, terminated=True, success=False if self.has_success else None
                )
            self._seen = outcome.observation
            self._simulated += 1
            reward += outcome.reward
            cost += outcome.cost
            cut = outcome.truncated or self._simulated >= self._simulator.max_steps
            truncated = cut and not outcome.terminated
            if outcome.terminated or truncated:
                self._simulated = None
                break
        # Copies: a simulator may fill the same array again.
        observation = np.array(outcome.observation, np.float32)
        return Step(observation, reward, cost, outcome.terminated, truncated, outcome.success, blown_up)

    def render(self, width: int = 320, height: int = 240) -> Any:
        """A picture of the present state, uint8 [height, width, 3].

        Raises:
            DeviceError: nothing can be rendered here; the line says what is missing.
        """
        return self._simulator.frame(width, height)

    def position(self) -> tuple[float, float] | None:
        """Where the agent is on the plane, for maps; None where that says nothing."""
        return self._simulator.position()

    def close(self) -> None:
        """Free what the simulator holds."""
        self._simulator.close()


def make(source: Source) -> Environment:
    """The environment of a name, an object or a callable; see `Environment`."""
    return Environment(source)


def _built(source: Source) -> tuple[str, int, Simulator]:
    """The name of an environment, simulated steps per decision, and its simulator."""
    if not isinstance(source, str):
        from expertise.policy.envs.adapter import AnyGymnasium, called

        name, owned = name_of(source), callable(source)
        return name, 1, AnyGymnasium(called(source, name) if owned else source, name, owned=owned)
    parsed = Name.parse(source)
    if not parsed.family:
        from expertise.policy.envs.adapter import AnyGymnasium, made

        return str(parsed), parsed.repeat or 1, _shifted(AnyGymnasium(made(parsed.task), parsed.task), parsed)
    family: Family = FAMILIES[parsed.family]
    if parsed.task not in family.tasks():
        raise RecipeError(
            f"{parsed.family} has no task {parsed.task!r}", nearest(parsed.task, family.tasks())
        )
    return str(parsed), parsed.repeat or family.repeat, _shifted(family.build(parsed.task), parsed)


def _shifted(simulator: Simulator, name: Name) -> Simulator:
    """A simulator with the changed dynamics that a name asks for."""
    if name.shift.changed():
        try:
            simulator.shift(name.shift)
        except BaseException:
            simulator.close()
            raise
    return simulator


def names(family: str) -> list[str]:
    """Every name of a family, without changes.

    Raises:
        RecipeError: there is no such family.
        MissingExtra: its package is not installed.
    """
    return [f"{family}/{task}" for task in FAMILIES[family].tasks()]
