"""Recipe of a composition: what is learnt is alpha(s) alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture.routers.configs import FixedConfig, RouterConfig
from expertise.policy.acting import DenoisingPolicy, Policy, require_acting
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.compose import ComposedPolicy
from expertise.policy.data import DataConfig
from expertise.policy.export.describe import describe
from expertise.policy.learn.common import (
    PlainOptimizer,
    Prepared,
    base_at,
    behaviour,
    critics_at,
    described,
    facts_of,
    read_all,
    weights_for,
)
from expertise.policy.learn.doubts import LONGER, no_better_than_nothing, of_base
from expertise.policy.load import load
from expertise.policy.objective import WEIGHTS, ActionError, NoiseError, Uniform, Weights
from expertise.policy.policy import DiffusionPolicy
from expertise.policy.task import PolicyTask
from expertise.runs.config import TrainConfig
from expertise.runs.files import expand_paths
from expertise.runs.recipe import Choice
from expertise.skills.library import Library
from expertise.skills.skill import Skill

Level = Literal["parameters", "noise", "actions"]
"""Where parts are added up: PSEC, NSEC or ASEC."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeanConfig:
    """The release's regulariser, which the paper does not name: it draws alpha to one skill."""

    skill: str
    """The one (release: the safety skill)."""
    strength: Annotated[float, Ge(0)] = 1.0
    """Factor on it (release: 1)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompositionRecipe:
    """alpha(s) over skills, or over policies. PSEC's release: 1,000 steps of 2,048 for DSRL."""

    kind: Literal["composition"] = "composition"
    """What is learnt."""
    base: str
    """The diffusion policy that the skills were learnt on, by path."""
    data: list[DataConfig] = dataclasses.field(default_factory=list)
    """The target's: a few trajectories of what is wanted. Not needed where the weights are given."""
    train: TrainConfig
    """How long, and how much at once."""
    level: Level = "parameters"
    """Where parts are added up: "parameters" (PSEC), "noise" (NSEC) or "actions" (ASEC)."""
    skills: list[str] = dataclasses.field(default_factory=list)
    """Names in the library, in the order of alpha. In noise and in actions each is the base with it."""
    library: str = "skills"
    """Folder of the library."""
    force: bool = False
    """Take skills of another base, as long as their shapes fit."""
    policies: list[str] = dataclasses.field(default_factory=list)
    """In noise and in actions: further policies, by path."""
    with_base: bool = True
    """In noise and in actions: whether the base itself is the first part."""
    alpha: Annotated[RouterConfig, ALPHA] = dataclasses.field(default_factory=ALPHA.config)
    """The router that decides the weights; it reads the observation, on the policy's scale."""
    loss: Literal["noise", "action"] | None = None
    """What it learns by: the error of the noise (paper), or of the action through the whole sampler (release,
    NSEC and ASEC); left out: the noise, and in actions, where there is none, the action."""
    weights: Annotated[Weights, Choice(WEIGHTS, default="uniform")] = dataclasses.field(
        default_factory=Uniform.Config
    )
    """What a transition counts (release: "uniform" for DSRL, "advantage" for D4RL)."""
    critics: str = ""
    """Critics that `weights` asks and that go along with the policy, by path; empty: those of the base."""
    num_candidates: Annotated[int, Ge(1)] | None = None
    """Actions that it draws for each state; left out: as many as the base."""
    pick: str | None = None
    """Which of them it takes: "first", "max-q" or "min-qc"; left out: the base's."""
    lean: LeanConfig | None = None
    """The release's regulariser, for parameters alone; left out: none."""
    optimizer: PlainOptimizer = dataclasses.field(default_factory=PlainOptimizer)
    """Adam."""

    def __post_init__(self) -> None:
        expand_paths(self, "base", "library", "policies", "critics")
        if self.level == "parameters" and (self.policies or not self.skills):
            raise RecipeError('level "parameters" composes skills, and no policies')
        if self.level != "parameters" and not (self.skills or self.policies):
            raise RecipeError(f'level "{self.level}" needs policies, skills or both')
        if self.level == "actions" and self.loss == "noise":
            raise RecipeError('level "actions" has no noise to learn by', 'set loss to "action"')
        require_acting(self.num_candidates, self.pick)
        if self.lean and (self.level != "parameters" or self.lean.skill not in self.skills):
            raise RecipeError(
                f"alpha leans to a skill that is composed in parameters, not to {self.lean.skill!r}"
            )

    def prepare(self) -> Prepared:
        """Read base, skills, policies and data, and put them together; see `LearnRecipe`."""
        train = self.train
        base = base_at(self.base, train.device)
        critics = critics_at(self.critics, train.device) or base.critics
        library = Library(self.library)
        skills = library.load_all(self.skills, base.acting, force=self.force) if self.skills else []
        if self.data or self._learns():
            data = read_all(self.data)
            observations, actions = behaviour(data)
            weights, note = (
                weights_for(self.weights, critics, observations, actions, train.device),
                described(data),
            )
        else:
            # One state that nobody learns from.
            data, weights, note = None, None, ""
            observations, actions = torch.zeros(1, base.observation_dim), torch.zeros(1, base.action_dim)
        torch.manual_seed(train.seed)
        policy = self._policy(base, skills)
        if critics is not None:
            policy.attach(critics)
        if self.num_candidates is not None:
            policy.num_candidates = self.num_candidates
        if self.pick is not None:
            policy.pick = self.pick
        policy.require_critic()
        by_action = self.loss == "action" or self.level == "actions"
        task = PolicyTask(
            policy,
            observations,
            actions,
            train,
            weights=weights,
            objective=ActionError() if by_action else NoiseError(),
            penalty=self._penalty(policy, skills),
        )
        facts = facts_of(data, parts=policy, critics=critics)
        if data is None:
            return Prepared(task=task, facts=facts, note=note)
        learns = any(parameter.requires_grad for parameter in policy.parameters())
        return Prepared(
            task=task,
            facts=facts,
            note=note,
            warnings=[*of_base(observations, base), *_not_exportable(policy)],
            doubts=lambda: no_better_than_nothing(task, LONGER) if learns else [],
        )

    def _learns(self) -> bool:
        """Whether alpha is searched for, and not given."""
        return self.alpha.num_params(1, 1) > 0

    def _policy(self, base: DiffusionPolicy, skills: list[Skill]) -> Policy:
        if self.level == "parameters":
            self._require_weights([skill.name for skill in skills])
            return ComposedPolicy(base, skills, self.alpha)
        alone = ALPHA.config("fixed", values=[1.0])
        members: dict[str, Policy] = {"base": base} if self.with_base else {}
        for path in self.policies:
            member = load(path, self.train.device)
            if why := _not_exportable(member):
                raise RecipeError(
                    f"a composition of {path} could not be exported: {why[0]}",
                    "where a skill was learnt there, name the skill: --skill",
                )
            _put(members, Path(path).name, member)
        for skill in skills:
            _put(members, skill.name, ComposedPolicy(base, [skill], alone))
        self._require_weights(list(members))
        if self.level == "actions":
            return ActionComposition(list(members.values()), list(members), self.alpha)
        denoising = [member for member in members.values() if isinstance(member, DenoisingPolicy)]
        if len(denoising) < len(members):
            raise RecipeError('level "noise" composes diffusion policies only')
        return NoiseComposition(denoising, list(members), self.alpha)

    def _require_weights(self, parts: Sequence[str]) -> None:
        """Refuse constant weights that are not one for each part; the parts are named, in their order."""
        given = self.alpha.values if isinstance(self.alpha, FixedConfig) else []
        if given and len(given) != len(parts):
            hint = ("with_base = false leaves the base out",) if parts[0] == "base" else ()
            raise RecipeError(
                f"alpha.values (--weights) has {len(given)} numbers, and the parts are {', '.join(parts)}",
                *hint,
            )

    def _penalty(self, policy: Policy, skills: list[Skill]) -> Callable[[Tensor], Tensor] | None:
        """The release's: (mean of all alpha - s / 2)² + (mean of the one's alpha - s)², each alpha raw."""
        if self.lean is None or not self.lean.strength:
            return None
        index, strength = self.skills.index(self.lean.skill), self.lean.strength
        scaling = next(iter(skills[index].factors.values())).scaling

        def penalty(observations: Tensor) -> Tensor:
            alpha = policy.weigh(observations)
            assert alpha is not None
            raw = scaling * alpha
            return strength * ((raw.mean() - scaling / 2) ** 2 + (raw[:, index].mean() - scaling) ** 2)

        return penalty


def _not_exportable(policy: Policy) -> list[str]:
    """The reason why `policy export` would refuse a policy, if it would."""
    try:
        describe(policy, pick="first")  # whether the critic is there that it picks by is looked at apart
    except RecipeError as error:
        return [error.message]
    return []


def _put(members: dict[str, Policy], name: str, policy: Policy) -> None:
    if name in members:
        raise RecipeError(f"two of the policies that are composed are called {name!r}")
    members[name] = policy
