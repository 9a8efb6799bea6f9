"""What every policy can do: draw several actions for each state, and take one of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

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
"""Kind → class. To add one write it and add a line: it is saved, loaded, evaluated like the others."""

CRITIC_OF = {"first": "", "max-q": "reward", "min-qc": "safety"}
"""Pick → the critic that it asks."""
_OTHER_PICK = 'or pick without a critic: policy.pick = "first" in a recipe, --pick first in a command'


class Policy(nn.Module, abc.ABC):
    """Base of the policies. One way to act serves all of them.

    Args:
        observation_dim: width of an observation.
        action_dim: width of an action.
        num_candidates: actions that are drawn for each state where a call does not say.
        pick: which of them is taken where a call does not say: a key of `CRITIC_OF`.

    Raises:
        RecipeError: `pick` is not known, or `num_candidates` is below 1.
    """

    kind: str
    """Its name in `POLICIES`."""
    num_sheets: int
    """Sheets of noise that an action is made of."""
    names: tuple[str, ...] = ()
    """What it weighs up state by state, in the order of `weigh`; empty: nothing."""

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
        """The actions that the noise leads to. Gradients reach whatever of the policy learns."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Any]:
        """What `rebuilt` needs, as plain values."""

    @classmethod
    @abc.abstractmethod
    def rebuilt(cls, facts: dict[str, Any]) -> Policy:
        """The policy that has these facts, its weights yet to be put in."""

    def facts(self) -> dict[str, Any]:
        """What `restored` needs besides the weights, as plain values."""
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
        """alpha(s), the weight of each of `names` at each state; None: it weighs nothing up."""
        return None

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
        """What to do.

        Args:
            observations: as they come, `[states, observations]` or one state `[observations]`: a tensor, a
                NumPy array or lists of numbers.
            num_candidates: actions to draw for each state; None: the policy's own number.
            pick: which of them to take: "first", "max-q" or "min-qc"; None: the policy's own.
            noise: standard normal numbers, as `draw` gives them, instead of drawing; the rest is determined.
                The number of candidates is then theirs. One state has noise for one state.
            generator: what draws them; None: torch's own.

        Returns:
            Actions within ±1 (`diffusion.clip`), float32, `[states, actions]`, or `[actions]` for one state:
            for a tensor a tensor on the policy's device, else a NumPy array.

        Raises:
            DataError: the observations are no such numbers, not finite or not of the policy's width, or the
                noise is not for them.
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
        """The noise that `act` starts from, drawn where the generator lives, on the policy's device."""
        require_acting(num_candidates)
        shape = (self.num_sheets, num_states, num_candidates, self.action_dim)
        here = self.scale.mean.device
        device = here if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=device).to(here)

    def require_critic(self, pick: str | None = None) -> None:
        """Refuse a way to pick that the critics at hand cannot serve.

        Args:
            pick: None: the policy's own.

        Raises:
            RecipeError: `pick` is not known, or its critic is not there.
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
        """One candidate for each state.

        Raises:
            RecipeError: `pick` is not known, or its critic is not attached.
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
        """What a weight is called today that version 0.1.0 wrote as `name`."""
        return name_now(name)

    def update_acting(self, step: int) -> None:
        """What follows training step `step` (from 0): a slow copy that acts moves, where there is one."""


class DenoisingPolicy(Policy, abc.ABC):
    """Base of the policies that predict the noise in an action, and so turn noise into actions.

    Args:
        diffusion: the process.
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
        """(noisy actions [rows, actions], times [rows]) → the noise in them, given what was observed.

        Args:
            observations: as they came.
            acting: ask what acts, else what is trained, where these are two.
            each: so many rows, one after another, belong to each state.
        """

    def candidates(
        self,
        observations: Float[Tensor, "states observations"],
        noise: Float[Tensor, "sheets states candidates actions"],
    ) -> Float[Tensor, "states candidates actions"]:
        """The actions that the noise leads to. Gradients reach whatever of the policy learns."""
        _, states, number, dim = noise.shape
        predict = self.predictor(observations, acting=True, each=number)
        return self.diffusion.sample(predict, noise.flatten(1, 2)).view(states, number, dim)


def require_acting(num_candidates: int | None = None, pick: str | None = None) -> None:
    """Refuse a number of candidates below 1, and a way to pick one that is not known; None is not looked at.

    Raises:
        RecipeError: it is so.
    """
    if num_candidates is not None and num_candidates < 1:
        raise RecipeError(f"num_candidates must be at least 1, not {num_candidates}")
    if pick is not None and pick not in CRITIC_OF:
        raise RecipeError(f"unknown pick {pick!r}", nearest(pick, CRITIC_OF))


def restored(facts: dict[str, Any]) -> Policy:
    """A policy from its `facts`, critics included; its weights are yet to be put in."""
    policy: Policy = POLICIES[facts["kind"]].rebuilt(facts)
    policy.num_candidates, policy.pick = facts["num_candidates"], facts["pick"]
    if facts["critics"] is not None:
        config = recipes.build(facts["critics"], CriticsConfig)
        policy.attach(Critics(config, policy.observation_dim, policy.action_dim))
    return policy
