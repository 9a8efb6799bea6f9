"""A diffusion policy: a network that is trained, and an EMA copy of it that acts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.policy.acting import DenoisingPolicy, require_acting
from expertise.policy.diffusion import DiffusionConfig
from expertise.policy.network import NETWORKS, Denoiser, NetworkConfig, ResidualNetwork
from expertise.runs import recipe as recipes
from expertise.runs.recipe import Choice
from expertise.shapes import Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A diffusion policy. Defaults of PSEC's release, except for `normalize` and `ema_warmup`."""

    network: Annotated[NetworkConfig, Choice(NETWORKS, default="residual")] = dataclasses.field(
        default_factory=ResidualNetwork.Config
    )
    """The network that predicts the noise."""
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    """Steps, schedule and sampler."""
    num_candidates: Annotated[int, Ge(1)] = 1
    """Number of actions sampled for each state (release: evaluated at 1, 8 and 16)."""
    pick: str = "first"
    """Rule for choosing one of them: "first" (release, D4RL), "max-q", "min-qc" (safest; release, DSRL)."""
    ema_rate: Annotated[float, Gt(0), Le(1)] = 0.001
    """Rate at which the acting weights follow the trained ones (release: tau = 0.001)."""
    ema_warmup: Annotated[int, Ge(0)] = 10
    """Warm-up of that rate: at step n (from 0) it is at least w / (w + n); 0: no warm-up (release)."""
    normalize: bool = True
    """Normalise observations to mean 0 and standard deviation 1 of the data (release: false)."""

    def __post_init__(self) -> None:
        require_acting(self.num_candidates, self.pick)
        if not 0 < self.ema_rate <= 1 or self.ema_warmup < 0:
            raise RecipeError(
                f"ema_rate must lie in (0, 1] and ema_warmup must not be negative, not {self.ema_rate} and "
                f"{self.ema_warmup}"
            )

    def build(self, observation_dim: int, action_dim: int) -> DiffusionPolicy:
        """Build a policy with new weights."""
        return DiffusionPolicy(self, self.network.build(observation_dim, action_dim))

    def build_for(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> DiffusionPolicy:
        """Build a policy with new weights for these data, with their scale if `normalize` is set."""
        policy = self.build(observations.shape[1], actions.shape[1])
        if self.normalize:
            policy.scale.fit(observations)
        return policy


class DiffusionPolicy(DenoisingPolicy):
    """A trained network, its acting EMA copy, a scale for observations, and optional critics.

    Args:
        config: configuration of the policy.
        network: the network, built from `config.network`.
    """

    kind = "diffusion"

    def __init__(self, config: PolicyConfig, network: Denoiser) -> None:
        dims = network.observation_dim, network.action_dim
        super().__init__(config.diffusion, *dims, config.num_candidates, config.pick)
        self.config = config
        self.network = network
        self.acting = copy.deepcopy(network).requires_grad_(requires_grad=False).eval()

    @override
    def predictor(
        self, observations: Float[Tensor, "states observations"], *, acting: bool, each: int = 1
    ) -> Callable[[Tensor, Tensor], Tensor]:
        network, seen = self.acting if acting else self.network, self.scale(observations)
        if each > 1:
            seen = seen.repeat_interleave(each, dim=0)
        return lambda actions, times: network(actions, times, seen)

    def train(self, mode: bool = True) -> DiffusionPolicy:
        """Set the mode of the trained network; the EMA copy stays in eval mode."""
        super().train(mode)
        self.acting.eval()
        return self

    def update_acting(self, step: int) -> None:
        """Move the acting weights towards the trained ones, after training step `step` (from 0)."""
        slow, quick = self.acting.parameters(), self.network.parameters()
        follow(slow, quick, self.config.ema_rate, self.config.ema_warmup, step)

    @override
    def parts(self) -> dict[str, Any]:
        return {"policy": dataclasses.asdict(self.config)}

    @classmethod
    def rebuilt(cls, facts: dict[str, Any]) -> DiffusionPolicy:
        """Build a policy of the same configuration."""
        config = recipes.build(facts["policy"], PolicyConfig)
        return config.build(facts["observation_dim"], facts["action_dim"])


def follow(slow: Iterable[Tensor], quick: Iterable[Tensor], rate: float, warmup: int, step: int) -> None:
    """Move weights towards others in place: an exponential moving average.

    Args:
        slow: weights to move, in place.
        quick: weights to follow.
        rate: share of the difference to move in each step.
        warmup: w; at step n at least w / (w + n) of the difference; 0: no warm-up.
        step: n, from 0.
    """
    share = max(rate, warmup / (warmup + step) if warmup else 0.0)
    with torch.no_grad():
        torch._foreach_lerp_(list(slow), list(quick), share)
