"""Training of a new skill on a frozen policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from typing_extensions import override

from expertise.errors import SkillError
from expertise.policy.acting import DenoisingPolicy
from expertise.policy.compose import empty_skill, shape_of
from expertise.policy.policy import DiffusionPolicy, follow
from expertise.runs import recipe as recipes
from expertise.shapes import Float
from expertise.skills.adapted import Adapted
from expertise.skills.composing import compose
from expertise.skills.composition import composition_of
from expertise.skills.learn import SkillConfig, fresh, learnt, trainable
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import find_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullConfig:
    """A skill of full rank: a whole matrix for each adapted weight (the paper's `PSEC (MLP)`)."""

    multiplier: float = 1.0
    """Factor on the matrices; finite and not 0."""
    start: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of a new matrix, in units of 1 / sqrt(in); 0: it starts at zero.
    (The paper's curve starts at the level of a new policy, so its matrices seem to be random at first.)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """Training of a skill. Defaults of the paper and its release, except for `ema_warmup` and `dropout`."""

    rank: Annotated[int, Ge(1)] = 8
    """Rank of its factors (paper: 8, the best of 4 to 64; release's class: 8, its launcher: 16)."""
    multiplier: float = 16.0
    """Factor on `B A x`, not divided by the rank (release's class: 16, its launcher: 32)."""
    targets: list[str] = dataclasses.field(default_factory=lambda: ["all"])
    """Weights to adapt: "all", or names and ends of names, `*` allowed (paper: all)."""
    full: FullConfig | None = None
    """Whole matrices in place of factors; `rank` and `multiplier` are then ignored."""
    ema_rate: Annotated[float, Gt(0), Le(1)] = 0.001
    """Rate at which the acting factors follow the trained ones (release: tau = 0.001)."""
    ema_warmup: Annotated[int, Ge(0)] = 10
    """Warm-up of that rate: at step n (from 0) it is at least w / (w + n); 0: no warm-up (release)."""
    dropout: bool = False
    """Keep the base's dropout on in training; off: the skill trains beside the base in evaluation mode."""

    def new(self, base: nn.Module, name: str, seed: int) -> Skill:
        """Make an untrained skill: A by LeCun's rule, B zero.

        Raises:
            SkillError: a target matches nothing, or the multiplier is 0.
        """
        if self.full is None:
            low_rank = SkillConfig(
                targets=self.targets, rank=self.rank, alpha=self.multiplier, scale_convention="raw"
            )
            return fresh(base, name, low_rank, seed)
        if not self.full.multiplier or not math.isfinite(self.full.multiplier):
            raise SkillError(f"full.multiplier must be finite and not 0, not {self.full.multiplier}")
        generator, factors = torch.Generator().manual_seed(seed), {}
        for address, target in find_targets(base, self.targets).items():
            width, height = target.in_features, target.out_features
            whole = torch.randn(height, width, generator=generator) * (self.full.start * width**-0.5)
            factors[address] = Factors(A=torch.eye(width), B=whole, scaling=self.full.multiplier)
        return Skill(name=name, factors=factors)


class GrowingPolicy(DenoisingPolicy):
    """A base, frozen skills, and one skill in training; an EMA copy of its factors acts.

    The base is the acting part of the given policy (its EMA weights). Only the new skill's factors have
    `requires_grad`. It acts with the new skill at weight 1.

    Args:
        base: the policy to adapt; shared, never changed; its critics are used, too.
        skill: the skill to train, with its initial factors.
        config: settings of the training.
        beside: skills that are active beside it.
        weights: their constant weights; None: 0 each.

    Raises:
        SkillError: a skill does not fit the base, or there is not one weight for each skill beside.
    """

    kind = "growing"

    def __init__(
        self,
        base: DiffusionPolicy,
        skill: Skill,
        config: GrowthConfig,
        beside: Sequence[Skill] = (),
        weights: Sequence[float] | None = None,
    ) -> None:
        own = base.config
        dims = base.observation_dim, base.action_dim
        super().__init__(own.diffusion, *dims, base.num_candidates, base.pick)
        weights = [0.0] * len(beside) if weights is None else list(weights)
        if len(weights) != len(beside):
            raise SkillError(f"{len(beside)} skills beside need as many weights, not {len(weights)}")
        self.config, self._growth, self._beside = own, config, weights
        self.name = skill.name
        self._shapes = [shape_of(s) for s in (*beside, skill)]
        # There are two module trees over the base's storage. Only the acting one is in the state dict; the
        # other one's own factors are `learning`.
        self.acting, trained = (
            compose(base.acting, list(beside), weights=weights, growing=skill) for _ in range(2)
        )
        if config.full is not None:
            for tree in (self.acting, trained):
                _hold_inputs(tree)
        self._trained = (trained,)
        self.learning = nn.ParameterList(trainable(trained))
        self._slow = trainable(self.acting)
        self.acting.requires_grad_(requires_grad=False)
        self.scale = base.scale
        if base.critics is not None:
            self.attach(base.critics)

    @override
    def predictor(
        self, observations: Float[Tensor, "states observations"], *, acting: bool, each: int = 1
    ) -> Callable[[Tensor, Tensor], Tensor]:
        network = self.acting if acting else self._trained[0]
        seen = self.scale(observations)
        if each > 1:
            seen = seen.repeat_interleave(each, dim=0)
        return lambda actions, times: network(actions, times, seen)

    def update_acting(self, step: int) -> None:
        """Move the acting factors towards the trained ones, after training step `step` (from 0)."""
        follow(self._slow, self.learning, self._growth.ema_rate, self._growth.ema_warmup, step)

    def skill(self) -> Skill:
        """Return a copy of the skill as it acts now."""
        return learnt(self.acting, self.name)

    def train(self, mode: bool = True) -> GrowingPolicy:
        """Set the mode; the trained tree has dropout only if the configuration says so."""
        super().train(mode)
        for module in self._trained[0].modules():
            if isinstance(module, nn.Dropout):
                module.training = mode and self._growth.dropout
        return self

    def _apply(self, *arguments: Any, **named: Any) -> GrowingPolicy:
        super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        # The trained tree is no child; the parameters in it have been moved with `learning`.
        self._trained[0]._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        return self

    def parts(self) -> dict[str, Any]:
        """Return the configurations of the base and of the growth, and the shape of each skill."""
        return {
            "policy": dataclasses.asdict(self.config),
            "growth": dataclasses.asdict(self._growth),
            "skills": self._shapes,
            "weights": self._beside,
        }

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> GrowingPolicy:
        """Build a policy with the same skills, all zero."""
        base = DiffusionPolicy.rebuilt(facts)
        *beside, skill = (empty_skill(base, shape) for shape in facts["skills"])
        return cls(base, skill, recipes.build(facts["growth"], GrowthConfig), beside, facts["weights"])


def _hold_inputs(tree: nn.Module) -> None:
    """Train only B: A is the identity, so that B is the whole matrix."""
    for layer in composition_of(tree).adapted.values():
        assert isinstance(layer, Adapted)
        layer.parts.lora_A.requires_grad_(False)
