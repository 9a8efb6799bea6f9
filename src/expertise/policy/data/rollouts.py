"""Episodes of teachers as transitions, the same for the same seed."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from expertise.errors import RecipeError
from expertise.policy.data.checks import checked
from expertise.policy.data.teachers import Teacher
from expertise.policy.data.transitions import Transitions
from expertise.policy.envs import Environment, Name

SCRIPT, CHANCE = "script", "random"
"""Teachers that are not trained: Meta-World's scripted experts, and actions at random."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Episodes of one teacher, or of two blended."""

    teacher: str
    """A trained teacher's name, "script" (Meta-World's experts) or "random"."""
    episodes: Annotated[int, Ge(1)]
    """How many are kept."""
    environment: str = ""
    """Where it acts: family/task, an id that Gymnasium knows, or module:function; empty: where it was
    trained."""
    checkpoint: Annotated[int, Ge(0)] = 0
    """Its weights after so many steps; 0: at the end."""
    partner: str = ""
    """A second teacher: each episode is acted by a blend, u · teacher + (1 - u) · partner, u drawn evenly."""
    partner_checkpoint: Annotated[int, Ge(0)] = 0
    """The partner's weights after so many steps; 0: at the end."""
    sample: bool = True
    """Trained teachers draw from their distribution; else they do its mean."""
    noise: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of what is added to each action."""
    record: Literal["executed", "intended"] = "executed"
    """Which action is recorded: with noise, or as the teacher meant it (for cloning experts)."""
    until_success: bool = False
    """Episodes end when the task is done, and only those are kept."""

    def __post_init__(self) -> None:
        if self.environment:
            Name.parse(self.environment)
        elif self.teacher in (SCRIPT, CHANCE):
            raise RecipeError(f"a rollout of the teacher {self.teacher!r} must name its environment")
        if self.partner_checkpoint and not self.partner:
            raise RecipeError("a rollout has a partner_checkpoint and no partner")


def episode_seeds(seed: int, purpose: str) -> Iterator[tuple[int, np.random.Generator]]:
    """Without end: the seed of an episode, and the generator of all else that is random in it.

    Args:
        seed: of the data set.
        purpose: what the episodes are for; another purpose gets other episodes.
    """
    number = 0
    while True:
        sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number])
        yield int(sequence.generate_state(1)[0]), np.random.default_rng(sequence)
        number += 1


def roll_out(
    environment: Environment,
    teacher: Teacher,
    config: RolloutConfig,
    seed: int,
    purpose: str,
    partner: Teacher | None = None,
) -> Iterator[Transitions]:
    """The episodes of a rollout, one at a time.

    Args:
        environment: where the teacher acts.
        teacher: who acts.
        config: how many episodes, noise, what is recorded; its names are not looked at.
        seed: of the data set.
        purpose: see `episode_seeds`.
        partner: whom the teacher is blended with.

    Raises:
        RecipeError: only episodes that succeed are kept, and of twenty or more not one in ten does.
    """
    kept = 0
    for tried, (start, dice) in enumerate(episode_seeds(seed, purpose)):
        share = dice.uniform() if partner is not None else 1.0
        rows, done = _episode(environment, start, dice, _Blend(teacher, partner, share), config)
        if not config.until_success or done:
            yield rows
            kept += 1
            if kept == config.episodes:
                return
        elif tried + 1 >= 20 and kept < (tried + 1) / 10:
            raise RecipeError(
                f"{config.teacher} does the task of {environment.name} in {kept} of {tried + 1} episodes",
                "set until_success to false, or take a better teacher",
            )


@dataclasses.dataclass(frozen=True)
class _Blend:
    teacher: Teacher
    partner: Teacher | None
    share: float

    def act(self, observation: Any, dice: np.random.Generator) -> Any:
        action = self.teacher.act(observation, dice)
        if self.partner is None:
            return action
        return self.share * action + (1 - self.share) * self.partner.act(observation, dice)


def _episode(
    environment: Environment, seed: int, dice: np.random.Generator, blend: _Blend, config: RolloutConfig
) -> tuple[Transitions, bool]:
    """An episode, and whether it ended with the task done."""
    lists: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "rewards", "costs")}
    observation = environment.reset(seed)
    while True:
        intended = executed = np.clip(blend.act(observation, dice), -1.0, 1.0)
        if config.noise:
            noise = config.noise * dice.standard_normal(environment.action_dim)
            executed = np.clip(intended + noise, -1.0, 1.0)
        # What is recorded is what is done: the environment gets the rounded numbers, too.
        executed = np.asarray(executed, np.float32)
        step = environment.step(executed)
        lists["observations"].append(observation)
        lists["actions"].append(executed if config.record == "executed" else intended)
        lists["rewards"].append(step.reward)
        lists["costs"].append(step.cost)
        observation = step.observation
        done = config.until_success and bool(step.success)
        if step.terminated or step.truncated or done:
            break
    seen = np.array([*lists["observations"], observation])
    last = np.arange(len(seen) - 1) == len(seen) - 2
    arrays = {
        **lists,
        "observations": seen[:-1],
        "next_observations": seen[1:],
        "terminals": last & step.terminated,
        "timeouts": last & (not step.terminated),
    }
    if not environment.has_cost:
        del arrays["costs"]
    return checked(arrays, environment.name), done
