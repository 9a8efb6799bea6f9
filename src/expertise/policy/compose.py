"""Composition in parameter space: one policy whose weights are `W(s) = W_0 + sum of alpha_i(s) B_i A_i`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from expertise.mixture.routers.configs import RouterConfig
from expertise.policy.acting import DenoisingPolicy
from expertise.policy.alpha import ALPHA, weights_of
from expertise.policy.policy import DiffusionPolicy
from expertise.policy.steering import SteeredNetwork
from expertise.shapes import Float
from expertise.skills.composing import compose
from expertise.skills.composition import composition_of
from expertise.skills.derived import skills_of
from expertise.skills.routing import built
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import all_targets


class ComposedPolicy(DenoisingPolicy):
    """A base with skills over the weights that act (PSEC, arXiv 2502.05932, §4.2).

    One alpha(s) serves all layers; it is asked once per state, not at each step of the sampler and not for
    each candidate. Only alpha's parameters have `requires_grad`. The base is shared and never changed.

    Args:
        base: what the skills were learnt on; its critics come along.
        skills: at least one, in the order of alpha.
        alpha: the router that decides their weights.

    Raises:
        SkillError: a skill does not fit the base, there is none, or two have one name.
        RecipeError: the router cannot be, as where weights are given, and not one for each skill.
    """

    kind = "composed"

    def __init__(self, base: DiffusionPolicy, skills: Sequence[Skill], alpha: RouterConfig) -> None:
        own = base.config
        dims = base.observation_dim, base.action_dim
        super().__init__(own.diffusion, *dims, base.num_candidates, base.pick)
        self.config, self._alpha_config = own, alpha
        self.network = compose(base.acting, skills)
        self.scale = base.scale
        self.names = composition_of(self.network).names
        self.alpha = built(alpha, self.observation_dim, len(skills)).to(self.scale.mean.device)
        self._shapes = [shape_of(skill) for skill in skills]
        self._steered: SteeredNetwork | None = None
        if base.critics is not None:
            self.attach(base.critics)

    def predictor(
        self, observations: Float[Tensor, "states observations"], *, acting: bool, each: int = 1
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(noisy actions [rows, actions], times [rows]) → the noise in them; see `DenoisingPolicy`."""
        seen = self.scale(observations)
        weights = weights_of(self.alpha, seen)
        if each > 1:
            seen = seen.repeat_interleave(each, dim=0)
        return lambda actions, times: self.network(actions, times, seen, weights=weights)

    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """The actions that the noise leads to. Gradients reach alpha."""
        if torch.is_grad_enabled():
            return super().candidates(observations, noise)
        if self._steered is None:
            self._steered = SteeredNetwork(self.network)
        _, states, number, dim = noise.shape
        seen, network = self.scale(observations), self._steered.forward
        self._steered.steer(weights_of(self.alpha, seen), each=number)
        if number > 1:
            seen = seen.repeat_interleave(number, dim=0)
        drawn = self.diffusion.sample(lambda x, times: network(x, times, seen), noise.flatten(1, 2))
        return drawn.view(states, number, dim)

    def weigh(self, observations: Float[Tensor, "states observations"]) -> Float[Tensor, "states names"]:
        """alpha(s)."""
        return weights_of(self.alpha, self.scale(observations))

    @property
    def skills(self) -> list[Skill]:
        """What alpha weighs up, in its order; views of what acts."""
        return skills_of(self.network)

    def parts(self) -> dict[str, Any]:
        """Configuration of the base and of alpha, and what each skill adapts."""
        return {
            "policy": dataclasses.asdict(self.config),
            "skills": self._shapes,
            "weighing": {"alpha": dataclasses.asdict(self._alpha_config)},  # type: ignore[call-overload]
        }

    def __getstate__(self) -> dict[str, Any]:
        # What acts shares memory with the network: a copy makes its own.
        return {**self.__dict__, "_steered": None}

    def _apply(self, *arguments: Any, **named: Any) -> ComposedPolicy:
        self._steered = None  # moved to another device or dtype, the network has other memory
        super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        return self

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> ComposedPolicy:
        """A policy with the same skills, all zero."""
        base = DiffusionPolicy.rebuilt(facts)
        skills = [empty_skill(base, shape) for shape in facts["skills"]]
        return cls(base, skills, ALPHA.read(facts["weighing"]["alpha"]))


def shape_of(skill: Skill) -> dict[str, Any]:
    """A skill's name, and rank and scaling of each of its factors, as plain values."""
    factors = {address: [f.rank, f.scaling] for address, f in skill.factors.items()}
    return {"name": skill.name, "factors": factors}


def empty_skill(base: DiffusionPolicy, shape: dict[str, Any]) -> Skill:
    """A skill of the shape that `shape_of` gave, all zero."""
    targets, factors = all_targets(base.acting), {}
    for address, (rank, scaling) in shape["factors"].items():
        target = targets[address]
        down, up = torch.zeros(rank, target.in_features), torch.zeros(target.out_features, rank)
        factors[address] = Factors(A=down, B=up, scaling=scaling)
    return Skill(name=shape["name"], factors=factors)
