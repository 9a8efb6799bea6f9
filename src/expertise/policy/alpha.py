"""alpha(s): how much each skill, or each policy, counts at a state."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.top_p import TopP
from expertise.registry import Registry
from expertise.runs.recipe import Choice
from expertise.shapes import Float

ALPHAS = Registry(
    "kind of alpha",
    {
        "context": "expertise.policy.alpha:ContextAlpha",
        "fixed": "expertise.policy.alpha:FixedAlpha",
        "top_p": "expertise.policy.alpha:TopPAlpha",
    },
)
"""To add a kind write it and add a line."""


class Alpha(nn.Module, abc.ABC):
    """Base of what weighs parts up; a mixture's router decides, whatever the kind."""

    @abc.abstractmethod
    def forward(self, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
        """The weights at each state; `seen` is on the policy's scale of observations."""


@runtime_checkable
class AlphaConfig(Protocol):
    """What the `Config` of every kind of alpha answers."""

    @property
    def name(self) -> str:
        """The kind's name in the registry."""

    def build(self, observation_dim: int, num_parts: int) -> Alpha:
        """Alpha over `num_parts` parts, before it learns.

        Raises:
            RecipeError: numbers are given, and not one for each part.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weighing:
    """How parts are weighed up."""

    alpha: Annotated[AlphaConfig, Choice(ALPHAS, default="context")] = dataclasses.field(
        default_factory=lambda: ContextAlpha.Config()
    )
    """What decides their weights."""


class ContextAlpha(Alpha):
    """PSEC's context-aware module (arXiv 2502.05932, §4.2): an MLP whose output nothing bounds.

    It starts as constant weights, `start`, at every state, and learns from there.

    Args:
        config: widths and start.
        observation_dim: width of an observation.
        num_parts: K.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of alpha from a network."""

        name: Literal["context"] = "context"
        """Which kind."""
        hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
        """Widths of the hidden layers, ReLU between them (release: 256, 256)."""
        start: list[float] = dataclasses.field(default_factory=list)
        """Weight of each part at first; empty: 1 over their number. 1 is a part as it was learnt. (Release:
        whatever a new network gives, near 0.)"""

        def build(self, observation_dim: int, num_parts: int) -> ContextAlpha:
            """Alpha over the parts, before it learns."""
            return ContextAlpha(self, observation_dim, num_parts)

    def __init__(self, config: Config, observation_dim: int, num_parts: int) -> None:
        super().__init__()
        self.router = Context(observation_dim, num_parts, config.hidden, "none")
        last = self.router.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(_one_each(config.start, num_parts, "alpha.start"))

    def forward(self, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
        """The network's output."""
        # All that the router does to a vector for each row; asked with every action, it should cost no more.
        return self.router.network(seen)  # type: ignore[no-any-return]


class FixedAlpha(Alpha):
    """The same weights at every state: given, or found by whatever a composition learns by.

    Args:
        config: the weights, and whether they learn.
        num_parts: K.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of constant weights."""

        name: Literal["fixed"] = "fixed"
        """Which kind."""
        values: list[float] = dataclasses.field(default_factory=list)
        """Weight of each part; empty: 1 over their number."""
        learn: bool = False
        """Whether they are a start only, from which the best ones for the data are searched."""

        def build(self, observation_dim: int, num_parts: int) -> FixedAlpha:
            """Alpha over the parts, before it learns."""
            return FixedAlpha(self, num_parts)

    def __init__(self, config: Config, num_parts: int) -> None:
        super().__init__()
        values = _one_each(config.values, num_parts, "alpha.values")
        self.values = nn.Parameter(values, requires_grad=config.learn)

    def forward(self, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
        """The values, for every state."""
        return self.values.expand(seen.shape[0], -1)


class TopPAlpha(Alpha):
    """Our variant: at each state only the skills that together hold a share p of the probability.

    Top-p routing (Dynamic MoE, arXiv 2403.07652, §2.2) over the parts and one more that adds nothing, so that
    the base may be left alone. A chosen skill's weight is its probability times `strength`.

    Args:
        config: p, strength, widths.
        observation_dim: width of an observation.
        num_parts: K.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """What a recipe says of top-p over skills."""

        name: Literal["top_p"] = "top_p"
        """Which kind."""
        p: Annotated[float, Gt(0), Le(1)] = 0.7
        """Share of the probability that the chosen parts must pass."""
        strength: Annotated[float, Gt(0)] = 1.0
        """Factor on the probabilities. 1: a skill that is certain counts as it was learnt."""
        hidden: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=lambda: [256, 256])
        """Widths of the hidden layers, ReLU after each."""

        def build(self, observation_dim: int, num_parts: int) -> TopPAlpha:
            """Alpha over the parts, before it learns."""
            return TopPAlpha(self, observation_dim, num_parts)

    def __init__(self, config: Config, observation_dim: int, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        layers: list[nn.Module] = []
        width = observation_dim
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.trunk = nn.Sequential(*layers)
        self.router = TopP(width, num_parts + 1, config.p, scale=config.strength)

    def forward(self, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
        """The gates, 0 for what is not chosen."""
        return self.router(self.trunk(seen)).weights()[:, : self.num_parts]  # type: ignore[no-any-return]


def _one_each(values: Sequence[float], num_parts: int, key: str) -> Tensor:
    """A weight for each part; empty: 1 over their number."""
    given = list(values) or [1 / num_parts] * num_parts
    if len(given) != num_parts:
        raise RecipeError(f"{key} has {len(given)} weights for {num_parts} parts")
    return torch.tensor(given)
