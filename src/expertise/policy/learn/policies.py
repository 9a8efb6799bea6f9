"""Recipes of whole policies: diffusion policies (bases, `Scratch`, `Joint`), and those without diffusion."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from expertise.policy.acting import Policy
from expertise.policy.baselines.direct import DirectConfig, Likelihood
from expertise.policy.data import DataConfig, Transitions
from expertise.policy.learn.common import (
    PolicyOptimizer,
    Prepared,
    behaviour,
    critics_at,
    described,
    facts_of,
    read_all,
    weights_for,
)
from expertise.policy.learn.doubts import LONGER, no_better_than_nothing, of_scale
from expertise.policy.objective import WEIGHTS, NoiseError, Objective, Uniform, Weights
from expertise.policy.policy import PolicyConfig
from expertise.policy.task import PolicyTask
from expertise.runs.config import TrainConfig
from expertise.runs.files import expand_paths
from expertise.runs.recipe import Choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """A diffusion policy from new weights. PSEC's release: 1 M steps of 2048 for DSRL."""

    kind: Literal["policy"] = "policy"
    """Kind of the recipe."""
    data: list[DataConfig]
    """Transitions to clone; several sources are joined (`Joint`)."""
    train: TrainConfig
    """Number of steps, batch size and other settings of the training loop."""
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    """Architecture of the policy."""
    weights: Annotated[Weights, Choice(WEIGHTS, default="uniform")] = dataclasses.field(
        default_factory=Uniform.Config
    )
    """Weights of the transitions."""
    critics: str = ""
    """Critics for `weights`, by path, which are also saved with the policy; empty: none."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the trajectories that are held out for evaluation; 0: evaluate on the training data."""
    optimizer: PolicyOptimizer = dataclasses.field(default_factory=PolicyOptimizer)
    """AdamW and its schedule."""

    def __post_init__(self) -> None:
        expand_paths(self, "critics")

    def prepare(self) -> Prepared:
        """Read the data and build the policy; see `LearnRecipe`."""
        return _prepared(self, NoiseError())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectRecipe:
    """A policy without diffusion from new weights: BC, or with `weights.name = "advantage"` IQL's."""

    kind: Literal["direct"] = "direct"
    """Kind of the recipe."""
    data: list[DataConfig]
    """Transitions to clone."""
    train: TrainConfig
    """Number of steps, batch size and other settings of the training loop."""
    policy: DirectConfig = dataclasses.field(default_factory=DirectConfig)
    """Architecture of the policy."""
    weights: Annotated[Weights, Choice(WEIGHTS, default="uniform")] = dataclasses.field(
        default_factory=Uniform.Config
    )
    """Weights of the transitions (IQL's code: temperature 3 for D4RL's MuJoCo tasks)."""
    critics: str = ""
    """Critics for `weights`, by path, which are also saved with the policy; empty: none."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the trajectories that are held out for evaluation; 0: evaluate on the training data."""
    optimizer: PolicyOptimizer = dataclasses.field(default_factory=PolicyOptimizer)
    """AdamW and its schedule (IQL's code: Adam, 3e-4, cosine)."""

    def __post_init__(self) -> None:
        expand_paths(self, "critics")

    def prepare(self) -> Prepared:
        """Read the data and build the policy; see `LearnRecipe`."""
        return _prepared(self, Likelihood())


def _prepared(recipe: PolicyRecipe | DirectRecipe, objective: Objective) -> Prepared:
    train, data = recipe.train, read_all(recipe.data)
    learnt, looked_at = _split(data, recipe.held_out, train.seed)
    observations, actions = behaviour(learnt)
    torch.manual_seed(train.seed)
    policy: Policy = recipe.policy.build_for(observations, actions)
    critics = critics_at(recipe.critics, train.device)
    if critics is not None:
        policy.attach(critics)
    policy.require_critic()
    normalized, key = recipe.policy.normalize, "policy.normalize"
    warnings = of_scale(observations, policy.scale, normalized=normalized, key=key)
    advice = f"set {key} = true" if warnings and not normalized else LONGER
    task = PolicyTask(
        policy,
        observations,
        actions,
        train,
        weights=weights_for(recipe.weights, critics, observations, actions, train.device),
        held_out=looked_at,
        objective=objective,
    )
    facts = facts_of(data, critics=critics)
    return Prepared(
        task=task,
        facts=facts,
        note=described(data),
        warnings=warnings,
        doubts=lambda: no_better_than_nothing(task, advice),
    )


def _split(data: Transitions, share: float, seed: int) -> tuple[Transitions, tuple[Tensor, Tensor] | None]:
    if not share:
        return data, None
    learnt, held_out = data.split(share, seed)
    return learnt, behaviour(held_out)
