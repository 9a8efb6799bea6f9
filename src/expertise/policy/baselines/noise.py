"""NSEC: policies composed at the level of noise, at each step of the sampler."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.mixture.routers.configs import RouterConfig
from expertise.policy.acting import DenoisingPolicy, Policy, restored
from expertise.policy.alpha import ALPHA, weights_of
from expertise.shapes import Float
from expertise.skills.routing import built


class NoiseComposition(DenoisingPolicy):
    """`eps(a_t, s, t) = sum of alpha_i(s) eps_i(a_t, s, t)` (NSEC of PSEC, arXiv 2502.05932, §3).

    Only alpha's parameters have `requires_grad`; it sees observations on the first member's scale.

    Args:
        members: policies with one diffusion process; copied.
        names: of the members, in their order.
        alpha: the router that decides their weights.

    Raises:
        RecipeError: the members do not go together, or the router cannot be over so many.
    """

    kind = "nsec"

    def __init__(self, members: Sequence[DenoisingPolicy], names: Sequence[str], alpha: RouterConfig) -> None:
        require_alike(members, names)
        first = members[0]
        for member in members:
            if member.diffusion.config != first.diffusion.config:
                raise RecipeError("policies with different diffusion processes cannot share their noise")
        dims = first.observation_dim, first.action_dim
        super().__init__(first.diffusion.config, *dims, first.num_candidates, first.pick)
        self.scale = copy.deepcopy(first.scale)
        self.names, self._alpha_config = tuple(names), alpha
        self.members = nn.ModuleList(copy.deepcopy(member) for member in members).requires_grad_(False)
        self.alpha = built(alpha, self.observation_dim, len(members)).to(self.scale.mean.device)
        if first.critics is not None:
            self.attach(first.critics)

    def predictor(
        self, observations: Float[Tensor, "states observations"], *, acting: bool, each: int = 1
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(noisy actions [rows, actions], times [rows]) → the noise in them; see `DenoisingPolicy`."""
        predictors = [member.predictor(observations, acting=True, each=each) for member in self._members()]
        weights = self.weigh(observations)
        if each > 1:
            weights = weights.repeat_interleave(each, dim=0)

        def predict(actions: Tensor, times: Tensor) -> Tensor:
            # Through the whole sampler a gradient comes back by way of the actions; else none is needed here.
            with torch.set_grad_enabled(actions.requires_grad):
                noises = torch.stack([one(actions, times) for one in predictors], dim=1)
            return (weights.unsqueeze(2) * noises).sum(1)

        return predict

    def weigh(self, observations: Float[Tensor, "states observations"]) -> Float[Tensor, "states names"]:
        """alpha(s)."""
        return weights_of(self.alpha, self.scale(observations))

    def parts(self) -> dict[str, Any]:
        """The members' facts and names, and alpha's configuration."""
        return facts_of(self._members(), self.names, self._alpha_config)

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> NoiseComposition:
        """A policy over members with the same facts."""
        members = [restored(member) for member in facts["members"]]
        assert all(isinstance(member, DenoisingPolicy) for member in members)
        alpha = ALPHA.read(facts["weighing"]["alpha"])
        return cls(members, facts["names"], alpha)  # type: ignore[arg-type]

    def _members(self) -> list[DenoisingPolicy]:
        return list(self.members)  # type: ignore[arg-type]


def require_alike(members: Sequence[Policy], names: Sequence[str]) -> None:
    """Refuse policies that cannot be composed.

    Raises:
        RecipeError: there is none, a name is missing or stands twice, or widths or sheets of noise differ.
    """
    if not members:
        raise RecipeError("a composition needs at least one policy")
    if len(names) != len(members) or len(set(names)) != len(names):
        raise RecipeError(f"{len(members)} policies need as many different names, not {list(names)}")
    first = members[0]
    for member in members:
        for quantity in ("observation_dim", "action_dim", "num_sheets"):
            ours, theirs = getattr(first, quantity), getattr(member, quantity)
            if ours != theirs:
                raise RecipeError(
                    f"policies with {quantity} {ours} and {theirs} cannot be composed: {', '.join(names)}"
                )


def facts_of(members: Sequence[Policy], names: Sequence[str], alpha: RouterConfig) -> dict[str, Any]:
    """What a composition of policies is made of, as plain values."""
    return {
        "members": [member.facts() for member in members],
        "names": list(names),
        "weighing": {"alpha": dataclasses.asdict(alpha)},  # type: ignore[call-overload]
    }
