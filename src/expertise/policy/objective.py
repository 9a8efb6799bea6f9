"""Objectives of a diffusion policy: errors per transition, and weights of transitions."""

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
    """Return the squared error of the predicted noise of each row, summed over the action's components.

    Its mean, weighted by w(s, a), is PSEC's objective for skills (arXiv 2502.05932); with w = 1 that of its
    base.

    Args:
        diffusion: the process.
        predict: (noisy actions [rows, actions], times [rows]) → the noise in them [rows, actions].
        actions: actions of the data.
        times: 0 … T - 1, uniform.
        noise: standard normal numbers.
    """
    predicted = predict(diffusion.add_noise(actions, noise, times), times)
    return (predicted - noise).square().sum(1)


@runtime_checkable
class Objective(Protocol):
    """Interface of a training objective: an error of each transition, which may need random numbers."""

    @property
    def name(self) -> str:
        """Name of the mean error in metrics."""

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw random numbers for `rows` transitions, on the CPU; each tensor has one row per transition."""

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Return fixed draws for evaluation, the same every time."""

    def errors(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        drawn: tuple[Tensor, ...],
        *,
        acting: bool,
    ) -> Float[Tensor, " rows"]:
        """Return the error of each transition; `acting` uses the acting weights, else the trained ones."""

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """Return the error of each transition for a prediction of zero, which a policy must stay below."""


class NoiseError:
    """`noise_errors` at a random time: the objective of diffusion policies, skills and alpha."""

    name = "noise_error"

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw times and noise."""
        assert isinstance(policy, DenoisingPolicy)
        times = torch.randint(policy.diffusion.num_steps, (rows,), generator=generator)
        return times, torch.randn(rows, policy.action_dim, generator=generator)

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Return one draw for every time, each with its own noise."""
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
        """Return `noise_errors` of the policy at the drawn times."""
        assert isinstance(policy, DenoisingPolicy)
        predict = policy.predictor(observations, acting=acting)
        return noise_errors(policy.diffusion, predict, actions, *drawn)

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """Return |noise|²: the error of predicted noise 0, on average the number of components."""
        return drawn[1].square().sum(1)


class ActionError:
    """Squared distance of the policy's action from the data's, through the whole sampler.

    PSEC's release trains the weights of its baselines on noise and on actions so.
    """

    name = "action_error"

    def draw(self, policy: Policy, rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the noise of the sampler."""
        return (torch.randn(rows, policy.num_sheets, policy.action_dim, generator=generator),)

    def looks(self, policy: Policy, rows: int) -> list[tuple[Tensor, ...]]:
        """Return one draw of the sampler's noise."""
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
        """Return |a(s) - a|², summed over components; it always uses the acting weights."""
        noise = drawn[0].transpose(0, 1).unsqueeze(2)
        return (policy.candidates(observations, noise)[:, 0] - actions).square().sum(1)

    def of_nothing(
        self, actions: Float[Tensor, "rows actions"], drawn: tuple[Tensor, ...]
    ) -> Float[Tensor, " rows"]:
        """Return |a|²: the error of an action that is always 0."""
        return actions.square().sum(1)


def advantage_weights(
    q: Float[Tensor, " rows"], v: Float[Tensor, " rows"], temperature: float, limit: float
) -> Float[Tensor, " rows"]:
    """Return IQL's weights: clip(exp(temperature (Q - V)), 0, limit) (arXiv 2110.06169, Eq. 7)."""
    return (temperature * (q - v)).exp().clamp(max=limit)


def safety_weights(
    q: Float[Tensor, " rows"], v: Float[Tensor, " rows"], temperature: float, limit: float
) -> Float[Tensor, " rows"]:
    """Return the release's 1[Q_c < V_c] clip(exp(temperature (V_c - Q_c)), 0, limit); 0 if not safer."""
    return (q < v) * (temperature * (v - q)).exp().clamp(max=limit)


@runtime_checkable
class Weights(Protocol):
    """Interface of the `Config` of every kind of weights."""

    @property
    def name(self) -> str:
        """Name of the kind in the registry."""

    def of(
        self,
        critics: Critics | None,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
    ) -> Float[Tensor, " rows"] | None:
        """Return the weight of each transition of a data set, without gradients; None: all weights are equal.

        The critics are trained before. (The release trains both at once, so its weights change.)

        Args:
            critics: the critics to use, if any.
            observations: observations, not normalised.
            actions: actions of the data.

        Raises:
            RecipeError: the critic that is needed is missing.
        """


class Uniform:
    """Equal weights for all transitions: cloning."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration of uniform weights."""

        name: Literal["uniform"] = "uniform"
        """Name of the weights."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> None:
            """Return None: all weights are equal."""


class Advantage:
    """IQL's weights, for reward skills: they grow with the advantage of an action over its state (§4.3)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration of IQL's weights."""

        name: Literal["advantage"] = "advantage"
        """Name of the weights."""
        temperature: Annotated[float, Ge(0)] = 1.0
        """Factor on the advantage (release's launcher for DSRL: 1; its class: 3; D4RL: 10)."""
        limit: Annotated[float, Gt(0)] = 100.0
        """Largest weight (release: 100)."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> Float[Tensor, " rows"]:
            """Return `advantage_weights` of the reward critic."""
            q, v = _values(critics, "reward", observations, actions)
            return advantage_weights(q, v, self.temperature, self.limit)


class Safety:
    """The release's weights for safety skills: zero unless an action is safer than its state."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration of the safety weights."""

        name: Literal["safety"] = "safety"
        """Name of the weights."""
        temperature: Annotated[float, Ge(0)] = 1.0
        """Factor on the gain in safety (release's launcher: 1; its configuration: 5; its class: 3)."""
        limit: Annotated[float, Gt(0)] = 150.0
        """Largest weight (release's configuration: 150; its launcher for skills: 100; its class: 200)."""

        def of(
            self,
            critics: Critics | None,
            observations: Float[Tensor, "rows observations"],
            actions: Float[Tensor, "rows actions"],
        ) -> Float[Tensor, " rows"]:
            """Return `safety_weights` of the safety critics."""
            q, v = _values(critics, "safety", observations, actions)
            return safety_weights(q, v, self.temperature, self.limit)


def _values(
    critics: Critics | None, name: str, observations: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute Q and V over a whole data set, in pieces."""
    if critics is None:
        raise RecipeError(f"these weights need a critic of {name}, and there are no critics")
    pieces = zip(torch.split(observations, _PIECE), torch.split(actions, _PIECE), strict=True)
    values = [(critics.q(name, seen, done), critics.v(name, seen)) for seen, done in pieces]
    q, v = zip(*values, strict=True)
    return torch.cat(q), torch.cat(v)
