"""The critics of one data set: of reward, of safety, or both, on the scale of its observations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.policy.batch import Batch, Scale
from expertise.policy.critic import (
    Critic,
    RewardCritic,
    RewardCriticConfig,
    SafetyCritic,
    SafetyCriticConfig,
)
from expertise.shapes import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticsConfig:
    """Critics to train, and normalisation of their observations."""

    reward: RewardCriticConfig | None = None
    """The critic of reward; None: no such critic."""
    safety: SafetyCriticConfig | None = None
    """The critics of safety; None: no such critics."""
    normalize: bool = True
    """Normalise observations to mean 0 and standard deviation 1 of the data (release: false)."""

    def __post_init__(self) -> None:
        for name in ("reward", "safety"):
            critic = getattr(self, name)
            if critic is not None and not critic.enabled:
                # Treated as left out, so that only None has to be checked later.
                object.__setattr__(self, name, None)
        if self.reward is None and self.safety is None:
            raise RecipeError("critics: give critics.reward, critics.safety or both")

    def build_for(self, data: Batch) -> Critics:
        """Build critics with new weights for these transitions."""
        critics = Critics(self, data.observations.shape[1], data.actions.shape[1])
        if self.normalize:
            critics.scale.fit(data.observations)
        return critics


class Critics(nn.Module):
    """The critics of one data set, and the scale of their observations.

    Args:
        config: the critics to build.
        observation_dim: width of an observation.
        action_dim: width of an action.
    """

    def __init__(self, config: CriticsConfig, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.scale = Scale(observation_dim)
        self.reward = RewardCritic(config.reward, observation_dim, action_dim) if config.reward else None
        self.safety = SafetyCritic(config.safety, observation_dim, action_dim) if config.safety else None

    def each(self) -> Mapping[str, Critic]:
        """The critics by name."""
        both = {"reward": self.reward, "safety": self.safety}
        return {name: critic for name, critic in both.items() if critic is not None}

    def facts(self) -> dict[str, Any]:
        """Configuration and sizes that `load_critics` needs besides the weights, as plain values."""
        return {
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "critics": dataclasses.asdict(self.config),
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of every critic as `<critic>_<loss>`."""
        scaled = dataclasses.replace(
            batch,
            observations=self.scale(batch.observations),
            next_observations=self.scale(batch.next_observations),
        )
        return {
            f"{name}_{key}": loss
            for name, critic in self.each().items()
            for key, loss in critic.losses(scaled).items()
        }

    @torch.no_grad()
    def q(
        self,
        name: str,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
    ) -> Float[Tensor, " rows"]:
        """Return the target Q of a critic, without gradients.

        Args:
            name: "reward" or "safety".
            observations: observations, not normalised.
            actions: actions to evaluate.

        Raises:
            RecipeError: there is no such critic.
        """
        return self.named(name).action_value(self.scale(observations), actions)

    @torch.no_grad()
    def v(self, name: str, observations: Float[Tensor, "rows observations"]) -> Float[Tensor, " rows"]:
        """Return V of a critic, without gradients; arguments and errors as in `q`."""
        return self.named(name).state_value(self.scale(observations))

    def named(self, name: str, *hints: str) -> Critic:
        """Return a critic by its name; `hints` give further advice for the error.

        Raises:
            RecipeError: there is no such critic.
        """
        critic = self.each().get(name)
        if critic is None:
            raise RecipeError(
                f"a critic of {name} is needed, and there is none", f"learn critics.{name}", *hints
            )
        return critic
