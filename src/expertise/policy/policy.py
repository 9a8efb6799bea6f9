"""A diffusion policy: what it sees, what it would do, and which of several candidates it does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from expertise.errors import DataError, RecipeError, nearest
from expertise.policy.batch import Scale
from expertise.policy.critics import Critics
from expertise.policy.diffusion import Diffusion, DiffusionConfig
from expertise.policy.network import NETWORKS, Denoiser, NetworkConfig, ResidualNetwork
from expertise.runs.recipe import Choice
from expertise.shapes import Float

CRITIC_OF = {"first": "", "max-q": "reward", "min-qc": "safety"}
"""Which candidate is taken → the critic that is asked: the first, the one of greatest Q, or the safest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """A diffusion policy. The defaults are those of PSEC's release but for `normalize` and `ema_warmup`."""

    network: Annotated[NetworkConfig, Choice(NETWORKS, default="residual")] = dataclasses.field(
        default_factory=ResidualNetwork.Config
    )
    """What predicts the noise."""
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    """Steps, schedule and sampler."""
    num_candidates: Annotated[int, Ge(1)] = 1
    """Actions that are drawn for each state (release: evaluated at 1, 8 and 16)."""
    pick: str = "first"
    """Which of them is taken: "first" (release, D4RL), "max-q", or "min-qc", the safest (release, DSRL)."""
    ema_rate: Annotated[float, Gt(0), Le(1)] = 0.001
    """How fast the weights that act follow those that are trained (release: tau = 0.001)."""
    ema_warmup: Annotated[int, Ge(0)] = 10
    """They follow faster at first: at step n (from 0) by at least w / (w + n); 0: never (release)."""
    normalize: bool = True
    """Bring observations to mean 0 and standard deviation 1 of the data (release: false)."""

    def __post_init__(self) -> None:
        _critic_of(self.pick)
        _require_candidates(self.num_candidates)
        if not 0 < self.ema_rate <= 1 or self.ema_warmup < 0:
            raise RecipeError(
                f"ema_rate must lie in (0, 1] and ema_warmup must not be negative, not {self.ema_rate} and "
                f"{self.ema_warmup}"
            )

    def build(self, observation_dim: int, action_dim: int) -> DiffusionPolicy:
        """A policy with new weights."""
        return DiffusionPolicy(self, self.network.build(observation_dim, action_dim))

    def build_for(
        self, observations: Float[Tensor, "rows observations"], actions: Float[Tensor, "rows actions"]
    ) -> DiffusionPolicy:
        """A policy with new weights, for data such as this."""
        policy = self.build(observations.shape[1], actions.shape[1])
        if self.normalize:
            policy.scale.fit(observations)
        return policy


class DiffusionPolicy(nn.Module):
    """A network that is trained, a slow copy of it that acts, a scale for observations, and critics if any.

    Args:
        config: what it is made of.
        network: the network, of `config.network` or one with skills over it.
    """

    def __init__(self, config: PolicyConfig, network: Denoiser) -> None:
        super().__init__()
        self.config = config
        self.observation_dim, self.action_dim = network.observation_dim, network.action_dim
        self.diffusion = Diffusion(config.diffusion)
        self.scale = Scale(self.observation_dim)
        self.network = network
        self.acting = copy.deepcopy(network).requires_grad_(requires_grad=False).eval()
        self.critics: Critics | None = None

    def predictor(
        self, observations: Float[Tensor, "rows observations"], *, acting: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """(noisy actions [rows, actions], times [rows]) → the noise in them, given what was observed.

        Args:
            observations: as they came.
            acting: ask the network that acts, else the one that is trained.
        """
        network, seen = self.acting if acting else self.network, self.scale(observations)
        return lambda actions, times: network(actions, times, seen)

    def train(self, mode: bool = True) -> DiffusionPolicy:
        """Put the network into training mode; what acts never is."""
        super().train(mode)
        self.acting.eval()
        return self

    def attach(self, critics: Critics) -> None:
        """Take critics along, to choose among candidates and to be saved with the policy; they learn no more.

        Raises:
            RecipeError: they are made for other observations or actions.
        """
        theirs, own = (critics.observation_dim, critics.action_dim), (self.observation_dim, self.action_dim)
        if theirs != own:
            raise RecipeError(
                f"the critics take observations and actions of widths {theirs}, the policy's are {own}"
            )
        self.critics = critics.requires_grad_(requires_grad=False).eval()

    @torch.no_grad()
    def act(
        self,
        observations: Float[Tensor, "states observations"],
        *,
        num_candidates: int | None = None,
        pick: str | None = None,
        noise: Float[Tensor, "steps rows candidates components"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "states actions"]:
        """What to do.

        Args:
            observations: as they come.
            num_candidates: actions to draw for each state; None: the configuration's number.
            pick: which of them to take; None: the configuration's.
            noise: standard normal numbers, as `draw` gives them, instead of drawing; the rest is determined.
                The number of candidates is then theirs.
            generator: what draws them; None: torch's own.

        Returns:
            Actions within ±1 (`diffusion.clip`), float32, on the policy's device.

        Raises:
            DataError: the observations are not of the policy's width, or the noise is not for them.
            RecipeError: `pick` needs a critic that is not attached, or `num_candidates` is below 1.
        """
        observations = observations.to(self.scale.mean)
        if observations.shape[1] != self.observation_dim:
            raise DataError(
                f"the policy takes observations of width {self.observation_dim}, not {observations.shape[1]}"
            )
        if noise is None:
            number = self.config.num_candidates if num_candidates is None else num_candidates
            noise = self.draw(observations.shape[0], number, generator)
        steps, states, _, dim = noise.shape
        if (steps, states, dim) != (self.diffusion.num_steps, observations.shape[0], self.action_dim):
            raise DataError(
                f"noise of shape {list(noise.shape)} does not fit {observations.shape[0]} states",
                "`draw` gives such noise",
            )
        candidates = self.candidates(observations, noise)
        return self.choose(observations, candidates, self.config.pick if pick is None else pick)

    def draw(
        self, num_states: int, num_candidates: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "steps states candidates actions"]:
        """The noise that `act` starts from, drawn where the generator lives, on the policy's device."""
        _require_candidates(num_candidates)
        shape = (self.diffusion.num_steps, num_states, num_candidates, self.action_dim)
        here = self.scale.mean.device
        device = here if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(here)

    @torch.no_grad()
    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "steps states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """The actions that the noise leads to."""
        _, states, number, dim = noise.shape
        rows = observations if number == 1 else observations.repeat_interleave(number, dim=0)
        drawn = self.diffusion.sample(self.predictor(rows, acting=True), noise.flatten(1, 2))
        return drawn.view(states, number, dim)

    @torch.no_grad()
    def choose(
        self,
        observations: Float[Tensor, "states observations"],
        candidates: Float[Tensor, "states candidates actions"],
        pick: str,
    ) -> Float[Tensor, "states actions"]:
        """One candidate for each state.

        Raises:
            RecipeError: `pick` is not known, or its critic is not attached.
        """
        critic = _critic_of(pick)
        if not critic:
            return candidates[:, 0]
        if self.critics is None:
            raise RecipeError(f"pick {pick!r} needs a critic of {critic}, and the policy has no critics")
        states, number, _ = candidates.shape
        rows = observations.repeat_interleave(number, dim=0)
        values = self.critics.q(critic, rows, candidates.flatten(0, 1)).view(states, number)
        best = values.argmax(1) if critic == "reward" else values.argmin(1)
        return candidates[torch.arange(states, device=best.device), best]

    def update_acting(self, step: int) -> None:
        """Move the weights that act towards those that are trained, after training step `step` (from 0)."""
        warmup = self.config.ema_warmup
        rate = max(self.config.ema_rate, warmup / (warmup + step) if warmup else 0.0)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.acting.parameters()), list(self.network.parameters()), rate)

    def facts(self) -> dict[str, Any]:
        """What `load` needs besides the weights, as plain values."""
        return {
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "policy": dataclasses.asdict(self.config),
            "critics": None if self.critics is None else dataclasses.asdict(self.critics.config),
        }


def _critic_of(pick: str) -> str:
    if pick not in CRITIC_OF:
        raise RecipeError(f"unknown pick {pick!r}", nearest(pick, CRITIC_OF))
    return CRITIC_OF[pick]


def _require_candidates(number: int) -> None:
    if number < 1:
        raise RecipeError(f"num_candidates must be at least 1, not {number}")
