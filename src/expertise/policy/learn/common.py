"""Shared parts of the recipes of policies: data, weights, critics, and inputs of the training loop."""

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
    """A training that is ready to start."""

    task: Task
    """The task to train."""
    facts: dict[str, Any]
    """Digests of the data and of the models it builds on; a run refuses to resume with others."""
    note: str = ""
    """Lines of information for the user."""
    warnings: Sequence[str] = ()
    """Warnings about the recipe's settings for these data, a line each."""
    finish: Callable[[], None] = lambda: None
    """Function to call after the last step, also of a run that was already complete."""
    doubts: Callable[[], Sequence[str]] = tuple
    """Function that is called last: warnings about the result, a line each."""


@runtime_checkable
class LearnRecipe(Protocol):
    """Interface of every recipe in `RECIPES`."""

    @property
    def kind(self) -> str:
        """Name of the recipe in `RECIPES`."""

    @property
    def train(self) -> TrainConfig:
        """Number of steps, batch size and other settings of the training loop."""

    @property
    def optimizer(self) -> PolicyOptimizer | PlainOptimizer:
        """AdamW and its schedule."""

    def prepare(self) -> Prepared:
        """Read everything and build the task, without writing anything.

        Raises:
            ExpertiseError: an input is missing, damaged, or does not fit.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptimizer:
    """Optimizer of policies and skills: `POLICY_OPTIMIZER`, the release's AdamW, with these settings."""

    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Initial learning rate (release: 3e-4)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of the learning rate: down to 0 by a cosine, or constant (release: cosine)."""
    schedule_steps: Annotated[int, Ge(0)] = 0
    """Length of the schedule in steps; after it the rate stays. 0: train.steps."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Weight decay of matrices (release: 1e-4)."""

    def whole(self) -> OptimizerConfig:
        """Return the complete configuration for the training loop."""
        return dataclasses.replace(POLICY_OPTIMIZER, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainOptimizer:
    """Optimizer of critics and alpha: `CRITIC_OPTIMIZER`, the release's Adam, with these settings."""

    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Constant learning rate (release: 3e-4)."""

    def whole(self) -> OptimizerConfig:
        """Return the complete configuration for the training loop."""
        return dataclasses.replace(CRITIC_OPTIMIZER, learning_rate=self.learning_rate)


def read_all(sources: Sequence[DataConfig]) -> Transitions:
    """Read and join the transitions of all sources; without costs if one of them has none.

    Raises:
        RecipeError: there is no source.
        DataError: data are missing, invalid, or do not fit together.
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
    note = f"note: costs are left out of all data, because {', '.join(dict.fromkeys(without))} has none"
    return dataclasses.replace(whole, notes=(*whole.notes, note))


def facts_of(data: Transitions | None, **models: nn.Module | None) -> dict[str, str]:
    """Return SHA-256 of the data, and of the weights of each model by its name; None is left out."""
    facts = {n: fingerprint(model, name_before).weights for n, model in models.items() if model is not None}
    if data is None:
        return facts
    digest = hashlib.sha256()
    for name, array in sorted(data.arrays().items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return {"data": digest.hexdigest(), **facts}


def described(data: Transitions) -> str:
    """Return the notes on data, a line each, and a line with their sizes and returns."""
    returns = data.returns()
    text = f"{len(data):,} transitions in {len(returns)} trajectories, mean return {returns.mean():.1f}"
    if data.costs is not None:
        text += f", mean cost {data.episode_costs().mean():.1f}"
    return "\n".join([*data.notes, text])


def behaviour(data: Transitions) -> tuple[Tensor, Tensor]:
    """Return observations and actions as tensors."""
    return torch.from_numpy(data.observations), torch.from_numpy(data.actions)


def batch_of(data: Transitions, *, reward_factor: float = 1.0, timeouts_end: bool = False) -> Batch:
    """Convert transitions to a batch for critics.

    Args:
        data: the transitions.
        reward_factor: factor on the rewards.
        timeouts_end: treat the end of a trajectory by time limit as terminal.
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
    """Load a diffusion policy without skills.

    Raises:
        RecipeError: the policy is of another kind.
        RunError: there is none, or it is damaged.
    """
    policy = load(path, device)
    if not isinstance(policy, DiffusionPolicy):
        raise RecipeError(
            f"{path} holds a policy of kind {policy.kind!r}", "skills go over a plain diffusion policy"
        )
    return policy


def critics_at(path: str, device: str) -> Critics | None:
    """Load critics that were trained separately; None if the path is empty.

    Raises:
        RunError: there are none, or they are damaged.
    """
    return load_critics(path, device) if path else None


def weights_for(
    weights: Weights, critics: Critics | None, observations: Tensor, actions: Tensor, device: str
) -> Tensor | None:
    """Return the weight of each transition, on the device; None: all weights are equal.

    Raises:
        RecipeError: a critic is needed, and there is none.
    """
    place = resolve(device)
    return weights.of(critics, observations.to(place), actions.to(place))
