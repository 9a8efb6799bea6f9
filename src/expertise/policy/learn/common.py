"""What all recipes of policies share: data, weights, critics, and what is handed to the training loop."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.policy.alpha import name_before
from expertise.policy.batch import Batch
from expertise.policy.critics import Critics
from expertise.policy.data import DataConfig, Transitions, concatenate
from expertise.policy.load import load, load_critics
from expertise.policy.objective import Weights
from expertise.policy.policy import DiffusionPolicy
from expertise.policy.task import CRITIC_OPTIMIZER, POLICY_OPTIMIZER
from expertise.runs.config import TrainConfig
from expertise.runs.device import resolve
from expertise.runs.loop import Task
from expertise.runs.optim import OptimizerConfig
from expertise.skills.fingerprints import fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that can begin."""

    task: Task
    """What the loop trains."""
    facts: dict[str, Any]
    """Digests of what it learns from and builds on; a run does not go on with others."""
    note: str = ""
    """For a human, some lines."""
    warnings: Sequence[str] = ()
    """What speaks against the recipe's settings for these data, a line each."""
    finish: Callable[[], None] = lambda: None
    """What follows the last step, also of a run that had all its steps before."""
    doubts: Callable[[], Sequence[str]] = tuple
    """Asked after that: what speaks against the result, a line each."""


@runtime_checkable
class LearnRecipe(Protocol):
    """What every recipe of `RECIPES` answers."""

    @property
    def kind(self) -> str:
        """Its name in `RECIPES`."""

    @property
    def train(self) -> TrainConfig:
        """How long, and how much at once."""

    @property
    def optimizer(self) -> PolicyOptimizer | PlainOptimizer:
        """AdamW and its schedule."""

    def prepare(self) -> Prepared:
        """Read everything, and build what is trained; nothing is written.

        Raises:
            ExpertiseError: something of it is missing, damaged, or does not fit.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptimizer:
    """How policies and skills learn: `POLICY_OPTIMIZER`, the release's AdamW, but for what is said here."""

    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """At first (release: 3e-4)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Down to 0, or not at all (release: cosine)."""
    schedule_steps: Annotated[int, Ge(0)] = 0
    """Steps that the schedule is laid out over; after them the rate stays. 0: train.steps."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Of matrices (release: 1e-4)."""

    def whole(self) -> OptimizerConfig:
        """All that the loop needs."""
        return dataclasses.replace(POLICY_OPTIMIZER, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainOptimizer:
    """How critics and alpha learn: `CRITIC_OPTIMIZER`, the release's Adam, but for what is said here."""

    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """All along (release: 3e-4)."""

    def whole(self) -> OptimizerConfig:
        """All that the loop needs."""
        return dataclasses.replace(CRITIC_OPTIMIZER, learning_rate=self.learning_rate)


def read_all(sources: Sequence[DataConfig]) -> Transitions:
    """The transitions of all sources, one after another; without costs where one of them has none.

    Raises:
        RecipeError: there is no source.
        DataError: data are missing, not as they should be, or do not go together.
    """
    if not sources:
        raise RecipeError("the recipe names no data", "give --data, or add a table [[data]] with a path")
    parts = [source.read() for source in sources]
    without = [source.path for source, part in zip(sources, parts, strict=True) if part.costs is None]
    if not without:
        return concatenate(parts)
    whole = concatenate([part.without_costs() for part in parts])
    if len(without) == len(parts):
        return whole
    note = f"note: costs are left out of all data, for {', '.join(dict.fromkeys(without))} has none"
    return dataclasses.replace(whole, notes=(*whole.notes, note))


def facts_of(data: Transitions | None, **models: nn.Module | None) -> dict[str, str]:
    """SHA-256 of the data, and of the weights of what is built on, under its name; None is left out."""
    facts = {n: fingerprint(model, name_before).weights for n, model in models.items() if model is not None}
    if data is None:
        return facts
    digest = hashlib.sha256()
    for name, array in sorted(data.arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return {"data": digest.hexdigest(), **facts}


def described(data: Transitions) -> str:
    """The notes on data, a line each, and a line with their sizes and returns."""
    returns = data.returns()
    text = f"{len(data):,} transitions in {len(returns)} trajectories, mean return {returns.mean():.1f}"
    if data.costs is not None:
        text += f", mean cost {data.episode_costs().mean():.1f}"
    return "\n".join([*data.notes, text])


def behaviour(data: Transitions) -> tuple[Tensor, Tensor]:
    """What was seen and what was done, as tensors."""
    return torch.from_numpy(data.observations), torch.from_numpy(data.actions)


def batch_of(data: Transitions, *, reward_factor: float = 1.0, timeouts_end: bool = False) -> Batch:
    """Transitions as critics take them.

    Args:
        data: the transitions.
        reward_factor: multiplies rewards.
        timeouts_end: treat a record that was cut as if nothing could follow.
    """
    ends = data.terminals | data.timeouts if timeouts_end else data.terminals
    observations, actions = behaviour(data)
    return Batch(
        observations=observations,
        actions=actions,
        rewards=torch.from_numpy(data.rewards) * reward_factor,
        next_observations=torch.from_numpy(data.next_observations),
        terminals=torch.from_numpy(ends).float(),
        costs=None if data.costs is None else torch.from_numpy(data.costs),
    )


def base_at(path: str, device: str) -> DiffusionPolicy:
    """A diffusion policy without skills.

    Raises:
        RecipeError: another kind of policy is there.
        RunError: there is none, or it is damaged.
    """
    policy = load(path, device)
    if not isinstance(policy, DiffusionPolicy):
        raise RecipeError(
            f"{path} holds a policy of kind {policy.kind!r}", "skills go over a plain diffusion policy"
        )
    return policy


def critics_at(path: str, device: str) -> Critics | None:
    """Critics that were learnt alone; None where the path is empty.

    Raises:
        RunError: there are none, or they are damaged.
    """
    return load_critics(path, device) if path else None


def weights_for(
    weights: Weights, critics: Critics | None, observations: Tensor, actions: Tensor, device: str
) -> Tensor | None:
    """The weight of each transition, on the device; None: they all count the same.

    Raises:
        RecipeError: a critic is needed, and there is none.
    """
    place = resolve(device)
    return weights.of(critics, observations.to(place), actions.to(place))
