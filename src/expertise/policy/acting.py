"""Base classes of the policies: sample several actions for each state, and choose one of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from expertise.errors import DataError, RecipeError, nearest
from expertise.policy.alpha import name_now
from expertise.policy.batch import Scale
from expertise.policy.critics import Critics, CriticsConfig
from expertise.policy.diffusion import Diffusion, DiffusionConfig
from expertise.policy.states import like, states_of
from expertise.registry import Registry
from expertise.runs import recipe as recipes
from expertise.shapes import Float

POLICIES = Registry(
    "kind of policy",
    {
        "diffusion": "expertise.policy.policy:DiffusionPolicy",
        "composed": "expertise.policy.compose:ComposedPolicy",
        "growing": "expertise.policy.growing:GrowingPolicy",
        "nsec": "expertise.policy.baselines.noise:NoiseComposition",
        "asec": "expertise.policy.baselines.actions:ActionComposition",
        "direct": "expertise.policy.baselines.direct:DirectPolicy",
    },
)
"""Policy class of each kind. To add one write it and add a line: saving, loading and evaluation use it."""

CRITIC_OF = {"first": "", "max-q": "reward", "min-qc": "safety"}
"""Critic that each `pick` needs; empty: none."""
_OTHER_PICK = 'or pick without a critic: policy.pick = "first" in a recipe, --pick first in a command'


class Policy(nn.Module, abc.ABC):
    """Base of the policies, with one `act` for all of them.

    Args:
        observation_dim: width of an observation.
        action_dim: width of an action.
        num_candidates: default number of actions that are sampled for each state.
        pick: default rule for choosing one of them: a key of `CRITIC_OF`.

    Raises:
        RecipeError: `pick` is unknown, or `num_candidates` is below 1.
    """

    kind: str
    """Name of the class in `POLICIES`."""
    num_sheets: int
    """Number of noise tensors ("sheets") that an action needs."""
    names: tuple[str, ...] = ()
    """Names of the weighted parts, in the order of `weigh`; empty: there are none."""

    def __init__(self, observation_dim: int, action_dim: int, num_candidates: int, pick: str) -> None:
        super().__init__()
        require_acting(num_candidates, pick)
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.num_candidates, self.pick = num_candidates, pick
        self.scale = Scale(observation_dim)
        self.critics: Critics | None = None

    @abc.abstractmethod
    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """Return the actions made from the noise. Gradients reach all trainable parameters."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return the facts that `rebuilt` needs, as plain values."""

    @classmethod
    @abc.abstractmethod
    def rebuilt(cls, facts: dict[str, Any]) -> Policy:
        """Build the policy with these facts; its weights are to be loaded afterwards."""

    def facts(self) -> dict[str, Any]:
        """Return the facts that `restored` needs besides the weights, as plain values."""
        return {
            "kind": self.kind,
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "num_candidates": self.num_candidates,
            "pick": self.pick,
            **self.parts(),
            "critics": None if self.critics is None else dataclasses.asdict(self.critics.config),
        }

    def weigh(
        self, observations: Float[Tensor, "states observations"]
    ) -> Float[Tensor, "states names"] | None:
        """Return alpha(s), the weight of each of `names` at each state; None if there are no weights."""
        return None

    def attach(self, critics: Critics) -> None:
        """Attach frozen critics, for the choice among candidates; they are saved with the policy.

        Raises:
            RecipeError: they are made for other observations or actions.
        """
        theirs, own = (critics.observation_dim, critics.action_dim), (self.observation_dim, self.action_dim)
        if theirs != own:
            raise RecipeError(
                f"the critics take observations and actions of widths {theirs}, the policy's are {own}"
            )
        self.critics = critics.requires_grad_(requires_grad=False).eval()

    @overload
    def act(
        self,
        observations: Float[Tensor, "*states observations"],
        *,
        num_candidates: int | None = None,
        pick: str | None = None,
        noise: Float[Tensor | np.ndarray, "sheets rows candidates components"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*states actions"]: ...

    @overload
    def act(
        self,
        observations: np.ndarray | Sequence[Any],
        *,
        num_candidates: int | None = None,
        pick: str | None = None,
        noise: Float[Tensor | np.ndarray, "sheets rows candidates components"] | None = None,
        generator: torch.Generator | None = None,
    ) -> np.ndarray: ...

    @torch.no_grad()
    def act(
        self,
        observations: Any,
        *,
        num_candidates: int | None = None,
        pick: str | None = None,
        noise: Any = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Return an action for each state.

        Args:
            observations: `[states, observations]` or one state `[observations]`, not normalised: a tensor, a
                NumPy array or lists of numbers.
            num_candidates: number of actions to sample per state; None: the policy's own number.
            pick: rule for choosing one of them: "first", "max-q" or "min-qc"; None: the policy's own.
            noise: standard normal numbers, as `draw` returns them; the result is then deterministic.
                They determine the number of candidates. One state has noise for one state.
            generator: random generator of the noise; None: torch's default.

        Returns:
            Actions within ±1 (`diffusion.clip`), float32, `[states, actions]`, or `[actions]` for one state:
            as a tensor on the policy's device for a tensor, else as a NumPy array.

        Raises:
            DataError: the observations are not numbers, not finite or not of the policy's width, or the
                noise has another shape.
            RecipeError: `pick` needs a critic that is not attached, or `num_candidates` is below 1.
        """
        rows = states_of(observations, self.observation_dim).to(self.scale.mean)
        if noise is None:
            number = self.num_candidates if num_candidates is None else num_candidates
            noise = self.draw(rows.shape[0], number, generator)
        noise = torch.as_tensor(noise).to(rows)
        shape = tuple(noise.shape)
        wanted = (self.num_sheets, rows.shape[0], self.action_dim)
        if len(shape) != 4 or not shape[2] or (*shape[:2], shape[3]) != wanted:
            raise DataError(
                f"noise of shape {list(shape)} does not fit {rows.shape[0]} states", "`draw` gives such noise"
            )
        candidates = self.candidates(rows, noise)
        actions = self.choose(rows, candidates, self.pick if pick is None else pick)
        return like(observations, actions)

    def draw(
        self, num_states: int, num_candidates: int = 1, generator: torch.Generator | None = None
    ) -> Float[Tensor, "sheets states candidates actions"]:
        """Draw the noise for `act` on the generator's device, and move it to the policy's device."""
        require_acting(num_candidates)
        shape = (self.num_sheets, num_states, num_candidates, self.action_dim)
        here = self.scale.mean.device
        device = here if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(here)

    def require_critic(self, pick: str | None = None) -> None:
        """Refuse a `pick` whose critic is not attached.

        Args:
            pick: the rule; None: the policy's own.

        Raises:
            RecipeError: `pick` is unknown, or its critic is not attached.
        """
        pick = self.pick if pick is None else pick
        require_acting(pick=pick)
        critic = CRITIC_OF[pick]
        if not critic:
            return
        if self.critics is None:
            raise RecipeError(
                f"pick {pick!r} needs a critic of {critic}, and the policy has no critics", _OTHER_PICK
            )
        self.critics.named(critic, _OTHER_PICK)

    @torch.no_grad()
    def choose(
        self,
        observations: Float[Tensor, "states observations"],
        candidates: Float[Tensor, "states candidates actions"],
        pick: str,
    ) -> Float[Tensor, "states actions"]:
        """Choose one candidate for each state.

        Raises:
            RecipeError: `pick` is unknown, or its critic is not attached.
        """
        self.require_critic(pick)
        critic = CRITIC_OF[pick]
        if not critic:
            return candidates[:, 0]
        assert self.critics is not None
        states, number, _ = candidates.shape
        rows = observations.repeat_interleave(number, dim=0)
        values = self.critics.q(critic, rows, candidates.flatten(0, 1)).view(states, number)
        best = values.argmax(1) if critic == "reward" else values.argmin(1)
        return candidates[torch.arange(states, device=best.device), best]

    @staticmethod
    def name_now(name: str) -> str:
        """Convert a weight's name from version 0.1.0 to its present name."""
        return name_now(name)

    def update_acting(self, step: int) -> None:
        """Update the acting copy after training step `step` (from 0); policies without one do nothing."""


class DenoisingPolicy(Policy, abc.ABC):
    """Base of the policies that predict the noise in an action, and sample actions from noise.

    Args:
        diffusion: the diffusion process.
        observation_dim, action_dim, num_candidates, pick: as in `Policy`.
    """

    def __init__(
        self,
        diffusion: DiffusionConfig,
        observation_dim: int,
        action_dim: int,
        num_candidates: int,
        pick: str,
    ) -> None:
        super().__init__(observation_dim, action_dim, num_candidates, pick)
        self.diffusion = Diffusion(diffusion)
        self.num_sheets = self.diffusion.num_steps

    @abc.abstractmethod
    def predictor(
        self, observations: Float[Tensor, "states observations"], *, acting: bool, each: int = 1
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function (noisy actions [rows, actions], times [rows]) → the noise in them.

        Args:
            observations: observations, not normalised.
            acting: use the acting weights, else the trained ones, if these differ.
            each: number of consecutive rows that belong to each state.
        """

    @override
    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        _, states, number, dim = noise.shape
        predict = self.predictor(observations, acting=True, each=number)
        return self.diffusion.sample(predict, noise.flatten(1, 2)).view(states, number, dim)


def require_acting(num_candidates: int | None = None, pick: str | None = None) -> None:
    """Refuse a number of candidates below 1, and an unknown `pick`; None is not checked.

    Raises:
        RecipeError: one of them is refused.
    """
    if num_candidates is not None and num_candidates < 1:
        raise RecipeError(f"num_candidates must be at least 1, not {num_candidates}")
    if pick is not None and pick not in CRITIC_OF:
        raise RecipeError(f"unknown pick {pick!r}", nearest(pick, CRITIC_OF))


def restored(facts: dict[str, Any]) -> Policy:
    """Build a policy from its `facts`, critics included; its weights are to be loaded afterwards."""
    policy: Policy = POLICIES[facts["kind"]].rebuilt(facts)
    policy.num_candidates, policy.pick = facts["num_candidates"], facts["pick"]
    if facts["critics"] is not None:
        config = recipes.build(facts["critics"], CriticsConfig)
        policy.attach(Critics(config, policy.observation_dim, policy.action_dim))
    return policy
