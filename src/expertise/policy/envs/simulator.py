"""What a family of environments has to give; `Environment` does the rest, the same for all of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from expertise.errors import RecipeError
from expertise.policy.envs.shifts import Shift
from expertise.shapes import Float


class Outcome(NamedTuple):
    """What one step of a simulator gives."""

    observation: Any
    """Flat, of any float type."""
    reward: float
    cost: float = 0.0
    terminated: bool = False
    """Nothing can follow; the limit of steps is applied by `Environment`."""
    success: bool | None = None
    """Whether the task is done, where there is such a thing."""
    truncated: bool = False
    """The simulator itself cut the episode; more could have come."""


class BlownUpError(Exception):
    """Numbers of a simulation ran away in a step: what comes of it means nothing, and the episode is over."""


class Simulator(abc.ABC):
    """One simulated task; what it has is set when it is made."""

    has_cost: bool = False
    """Whether steps may cost something."""
    has_success: bool = False
    """Whether steps say that the task is done."""
    observation_dim: int
    max_steps: int
    """Simulated steps of an episode."""
    action_low: Float[np.ndarray, " action"]
    action_high: Float[np.ndarray, " action"]
    declares_bounds: bool = False
    """Recorded actions are written in the simulator's own units, and the file declares these bounds."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, a line each."""

    @abc.abstractmethod
    def reset(self, seed: int) -> Any:
        """Begin the episode that this seed stands for, whatever was done before; its flat observation."""

    @abc.abstractmethod
    def step(self, action: Float[np.ndarray, " action"]) -> Outcome:
        """Advance by one step; `action` lies between `action_low` and `action_high`.

        Raises:
            BlownUpError: the simulation ran away.
        """

    @abc.abstractmethod
    def frame(self, width: int, height: int) -> Any:
        """A picture, uint8 [height, width, 3].

        Raises:
            DeviceError: nothing can be rendered here.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Free what the simulator holds."""

    def shift(self, shift: Shift) -> None:
        """Change the dynamics, once, before the first episode.

        Raises:
            RecipeError: this family cannot.
        """
        raise RecipeError(f"this family of environments takes no {shift.changed()[0]}")

    def identity(self) -> int:
        """Equal for two simulators that step the same object."""
        return id(self)

    def position(self) -> tuple[float, float] | None:
        """Where the agent is on the plane, where that says something."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Environments of one kind."""

    tasks: Callable[[], list[str]]
    """Their names; raises MissingExtra where the family's package is not installed."""
    build: Callable[[str], Simulator]
    """A simulator of one of them."""
    repeat: int = 1
    """Simulated steps per decision where a name does not say."""
