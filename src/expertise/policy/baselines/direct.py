"""BC and IQL without diffusion: a network that computes the action directly."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.policy.acting import Policy, require_acting
from expertise.runs import recipe as recipes
from expertise.shapes import Float

_LOG_STD = (-10.0, 2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectConfig:
    """A policy without diffusion. The defaults are those of IQL's code (arXiv 2110.06169)."""

    hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
    """Widths of the hidden layers, ReLU after each."""
    num_candidates: Annotated[int, Ge(1)] = 1
    """Number of actions sampled for each state; the first is the mean."""
    pick: str = "first"
    """Rule for choosing one of them: "first", "max-q" or "min-qc"."""
    normalize: bool = True
    """Normalise observations to mean 0 and standard deviation 1 of the data (IQL's code: false)."""

    def __post_init__(self) -> None:
        require_acting(self.num_candidates, self.pick)
        if any(width < 1 for width in self.hidden):
            raise RecipeError(f"policy.hidden must hold positive widths, not {self.hidden}")

    def build(self, observation_dim: int, action_dim: int) -> DirectPolicy:
        """Build a policy with new weights."""
        return DirectPolicy(self, observation_dim, action_dim)

    def build_for(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> DirectPolicy:
        """Build a policy with new weights for these data, with their scale if `normalize` is set."""
        policy = self.build(observations.shape[1], actions.shape[1])
        if self.normalize:
            policy.scale.fit(observations)
        return policy


class DirectPolicy(Policy):
    """A normal distribution over actions: `tanh` of an MLP is its mean, its deviation is the same everywhere.

    If every transition has weight 1 it is BC; with IQL's weights (`WEIGHTS["advantage"]`) it is the policy of
    IQL. The first of several candidates is the mean, the others are sampled.

    Args:
        config: widths and candidates.
        observation_dim: width of an observation.
        action_dim: width of an action.
    """

    kind = "direct"
    num_sheets = 1

    def __init__(self, config: DirectConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__(observation_dim, action_dim, config.num_candidates, config.pick)
        self.config = config
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise([observation_dim, *config.hidden, action_dim]):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1], nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """Return the mean and samples around it, cut to ±1."""
        mean: Tensor = self.network(self.scale(observations))
        away = noise[0] * self.std()
        away = torch.cat([torch.zeros_like(away[:, :1]), away[:, 1:]], dim=1)
        return (mean.unsqueeze(1) + away).clamp(-1.0, 1.0)

    def std(self) -> Float[Tensor, " actions"]:
        """Return the standard deviation of each component."""
        return self.log_std.clamp(*_LOG_STD).exp()

    @override
    def parts(self) -> dict[str, Any]:
        return {"policy": dataclasses.asdict(self.config)}

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> DirectPolicy:
        """Build a policy of the same configuration."""
        return recipes.build(facts["policy"], DirectConfig).build(
            facts["observation_dim"], facts["action_dim"]
        )


class Likelihood:
    """An `Objective`: the negative log-likelihood of the data's actions."""

    name = "negative_log_likelihood"

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw nothing: the likelihood needs no random numbers."""
        return ()

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Return a single empty draw."""
        return [()]

    def errors(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        drawn: tuple[Tensor, ...],
        *,
        acting: bool,
    ) -> Float[Tensor, " rows"]:
        """Return -log p(a | s), summed over components."""
        assert isinstance(policy, DirectPolicy)
        mean, log_std = policy.network(policy.scale(observations)), policy.log_std.clamp(*_LOG_STD)
        away = (actions - mean) / log_std.exp()
        return (0.5 * away.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(1)  # type: ignore[no-any-return]

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """Return -log p(a) under mean 0 and deviation 1, the distribution of a new policy."""
        return (0.5 * actions.square() + 0.5 * math.log(2 * math.pi)).sum(1)
