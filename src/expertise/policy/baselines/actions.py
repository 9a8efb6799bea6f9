"""ASEC: policies composed at the level of actions, after each of them has sampled to the end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expertise.mixture.routers.configs import RouterConfig
from expertise.policy.acting import Policy, restored
from expertise.policy.alpha import ALPHA, weights_of
from expertise.policy.baselines.noise import facts_of, require_alike
from expertise.shapes import Float
from expertise.skills.routing import built


class ActionComposition(Policy):
    """`a(s) = sum of alpha_i(s) a_i(s)`, cut to ±1 (ASEC of PSEC, arXiv 2502.05932, §3).

    All members start from the same noise. (The release trains its weights so, and evaluates with noise of
    each member's own.) Only alpha's parameters have `requires_grad`; it sees observations on the first
    member's scale.

    Args:
        members: policies; copied.
        names: of the members, in their order.
        alpha: the router that decides their weights.

    Raises:
        RecipeError: the members do not go together, or the router cannot be over so many.
    """

    kind = "asec"

    def __init__(self, members: Sequence[Policy], names: Sequence[str], alpha: RouterConfig) -> None:
        require_alike(members, names)
        first = members[0]
        super().__init__(first.observation_dim, first.action_dim, first.num_candidates, first.pick)
        self.num_sheets = first.num_sheets
        self.scale = copy.deepcopy(first.scale)
        self.names, self._alpha_config = tuple(names), alpha
        self.members = nn.ModuleList(copy.deepcopy(member) for member in members).requires_grad_(False)
        self.alpha = built(alpha, self.observation_dim, len(members)).to(self.scale.mean.device)
        if first.critics is not None:
            self.attach(first.critics)

    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """The weighted sums of what the members make of the noise. Gradients reach alpha."""
        with torch.no_grad():
            each = [member.candidates(observations, noise) for member in self._members()]
        weights = self.weigh(observations)[:, :, None, None]
        return (weights * torch.stack(each, dim=1)).sum(1).clamp(-1.0, 1.0)

    def weigh(self, observations: Float[Tensor, "states observations"]) -> Float[Tensor, "states names"]:
        """alpha(s)."""
        return weights_of(self.alpha, self.scale(observations))

    def parts(self) -> dict[str, Any]:
        """The members' facts and names, and alpha's configuration."""
        return facts_of(self._members(), self.names, self._alpha_config)

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> ActionComposition:
        """A policy over members with the same facts."""
        members = [restored(member) for member in facts["members"]]
        return cls(members, facts["names"], ALPHA.read(facts["weighing"]["alpha"]))

    def _members(self) -> list[Policy]:
        return list(self.members)  # type: ignore[arg-type]
