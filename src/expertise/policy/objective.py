"""What a diffusion policy descends: the error of the predicted noise, each transition with its weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from expertise.errors import RecipeError
from expertise.policy.acting import DenoisingPolicy, Policy
from expertise.policy.critics import Critics
from expertise.policy.diffusion import Diffusion
from expertise.registry import Registry
from expertise.shapes import Float, Int

WEIGHTS = Registry(
    "kind of weights",
    {
        "uniform": "expertise.policy.objective:Uniform",
        "advantage": "expertise.policy.objective:Advantage",
        "safety": "expertise.policy.objective:Safety",
    },
)

_PIECE = 8192


def noise_errors(
    diffusion: Diffusion,
    predict: Callable[[Tensor, Tensor], Tensor],
    actions: Float[Tensor, "rows actions"],
    times: Int[Tensor, " rows"],
    noise: Float[Tensor, "rows actions"],
) -> Float[Tensor, " rows"]:
    """The squared error of the noise that is predicted for each row, summed over the action's components.

    Its mean, each row times w(s, a), is PSEC's objective for skills (arXiv 2502.05932); with w = 1 that of
    its base.

    Args:
        diffusion: the process.
        predict: (noisy actions [rows, actions], times [rows]) → the noise in them [rows, actions].
        actions: what was done.
        times: 0 … T - 1, uniform.
        noise: standard normal numbers.
    """
    predicted = predict(diffusion.add_noise(actions, noise, times), times)
    return (predicted - noise).square().sum(1)


@runtime_checkable
class Objective(Protocol):
    """What is descended: an error of each transition, which may hang on numbers that are drawn."""

    @property
    def name(self) -> str:
        """What its mean is called in metrics."""

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Numbers for so many transitions, on the CPU; each tensor has a row for each of them."""

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Draws that are the same every time, to look at the same transitions with."""

    def errors(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        drawn: tuple[Tensor, ...],
        *,
        acting: bool,
    ) -> Float[Tensor, " rows"]:
        """The error of each transition; `acting` asks what acts, else what is trained."""

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """The error of each transition of who predicts nothing: what a policy must stay below."""


class NoiseError:
    """`noise_errors` at a random time: what diffusion policies, skills and alpha learn by."""

    name = "noise_error"

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Times and noise."""
        assert isinstance(policy, DenoisingPolicy)
        times = torch.randint(policy.diffusion.num_steps, (rows,), generator=generator)
        return times, torch.randn(rows, policy.action_dim, generator=generator)

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Every time, each with its own noise."""
        assert isinstance(policy, DenoisingPolicy)
        steps, generator = policy.diffusion.num_steps, torch.Generator().manual_seed(0)
        noise = torch.randn(steps, rows, policy.action_dim, generator=generator)
        return [(torch.full((rows,), time), noise[time]) for time in range(steps)]

    def errors(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        drawn: tuple[Tensor, ...],
        *,
        acting: bool,
    ) -> Float[Tensor, " rows"]:
        """`noise_errors`."""
        assert isinstance(policy, DenoisingPolicy)
        predict = policy.predictor(observations, acting=acting)
        return noise_errors(policy.diffusion, predict, actions, *drawn)

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """|noise|²: the error where the predicted noise is 0, on average the number of components."""
        return drawn[1].square().sum(1)


class ActionError:
    """The squared distance of what a policy would do from what was done, through its whole sampler.

    So PSEC's release trains the weights of its baselines on noise and on actions.
    """

    name = "action_error"

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The sampler's noise."""
        return (torch.randn(rows, policy.num_sheets, policy.action_dim, generator=generator),)

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """One draw."""
        return [self.draw(policy, rows, torch.Generator().manual_seed(0))]

    def errors(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        drawn: tuple[Tensor, ...],
        *,
        acting: bool,
    ) -> Float[Tensor, " rows"]:
        """|a(s) - a|², summed over components; it is always what acts that is asked."""
        noise = drawn[0].transpose(0, 1).unsqueeze(2)
        return (policy.candidates(observations, noise)[:, 0] - actions).square().sum(1)

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """|a|²: the error of an action that is always 0."""
        return actions.square().sum(1)


def advantage_weights(
    q: Float[Tensor, " rows"], v: Float[Tensor, " rows"], temperature: float, limit: float
) -> Float[Tensor, " rows"]:
    """IQL's weights: clip(exp(temperature (Q - V)), 0, limit) (arXiv 2110.06169, Eq. 7)."""
    return (temperature * (q - v)).exp().clamp(max=limit)


def safety_weights(
    q: Float[Tensor, " rows"], v: Float[Tensor, " rows"], temperature: float, limit: float
) -> Float[Tensor, " rows"]:
    """PSEC's release: 1[Q_c < V_c] clip(exp(temperature (V_c - Q_c)), 0, limit); 0 for what is no safer."""
    return (q < v) * (temperature * (v - q)).exp().clamp(max=limit)


@runtime_checkable
class Weights(Protocol):
    """What the `Config` of every kind of weights answers."""

    @property
    def name(self) -> str:
        """The kind's name in the registry."""

    def of(
        self,
        critics: Critics | None,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
    ) -> Float[Tensor, " rows"] | None:
        """The weight of each transition of a data set, without gradients; None: they all count the same.

        The critics are learnt before. (The release learns critics and skills at once, so its weights move.)

        Args:
            critics: those that may be asked.
            observations: what was seen, as it came.
            actions: what was done.

        Raises:
            RecipeError: the critic that is asked is not there.
        """


class Uniform:
    """Every transition counts the same: cloning."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of uniform weights."""

        name: Literal["uniform"] = "uniform"
        """Which weights."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> None:
            """None."""


class Advantage:
    """IQL's weights, for reward skills: the better an action than its state, the more it counts (§4.3)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of IQL's weights."""

        name: Literal["advantage"] = "advantage"
        """Which weights."""
        temperature: Annotated[float, Ge(0)] = 1.0
        """Factor on the advantage (release's launcher for DSRL: 1; its class: 3; D4RL: 10)."""
        limit: Annotated[float, Gt(0)] = 100.0
        """Greatest weight (release: 100)."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> Float[Tensor, " rows"]:
            """`advantage_weights` of the reward critic."""
            q, v = _values(critics, "reward", observations, actions)
            return advantage_weights(q, v, self.temperature, self.limit)


class Safety:
    """The release's weights for safety skills: only what is safer than its state counts."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of the weights of safety."""

        name: Literal["safety"] = "safety"
        """Which weights."""
        temperature: Annotated[float, Ge(0)] = 1.0
        """Factor on what is gained (release's launcher: 1; its configuration: 5; its class: 3)."""
        limit: Annotated[float, Gt(0)] = 150.0
        """Greatest weight (release's configuration: 150; its launcher for skills: 100; its class: 200)."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> Float[Tensor, " rows"]:
            """`safety_weights` of the safety critics."""
            q, v = _values(critics, "safety", observations, actions)
            return safety_weights(q, v, self.temperature, self.limit)


def _values(
    critics: Critics | None, name: str, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Q and V over a whole data set, a piece at a time."""
    if critics is None:
        raise RecipeError(f"these weights need a critic of {name}, and there are no critics")
    pieces = zip(torch.split(observations, _PIECE), torch.split(actions, _PIECE), strict=True)
    values = [(critics.q(name, seen, done), critics.v(name, seen)) for seen, done in pieces]
    q, v = zip(*values, strict=True)
    return torch.cat(q), torch.cat(v)
