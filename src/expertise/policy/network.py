"""Networks that predict the noise in an action. To add one, write its class and add a line to `NETWORKS`."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.policy.pieces import Dropout
from expertise.registry import Registry
from expertise.shapes import Float, Int

NETWORKS = Registry(
    "network",
    {
        "residual": "expertise.policy.network:ResidualNetwork",
        "mlp": "expertise.policy.network:PlainNetwork",
    },
)

NORM_EPSILON = 1e-6
"""Epsilon of every LayerNorm: Flax's default, which the release uses."""


class Denoiser(nn.Module, abc.ABC):
    """Base of the networks. Every learned linear map is an `nn.Linear`, so that a skill can adapt it."""

    observation_dim: int
    action_dim: int

    @abc.abstractmethod
    def forward(
        self,
        actions: Float[Tensor, "rows actions"],
        times: Int[Tensor, " rows"],
        observations: Float[Tensor, "rows observations"],
    ) -> Float[Tensor, "rows actions"]:
        """Predict the noise in `actions` at `times` (0 … T - 1), given observations."""


@runtime_checkable
class NetworkConfig(Protocol):
    """Interface of the `Config` of every network."""

    @property
    def name(self) -> str:
        """Name of the network in the registry."""

    def build(self, observation_dim: int, action_dim: int) -> Denoiser:
        """Build the network with new weights."""

    def num_params(self, observation_dim: int, action_dim: int) -> int:
        """Return the number of parameters, without building anything."""


class FourierFeatures(nn.Module):
    """Fourier features of a time: cosines and sines of learned frequencies, initially from N(0, 0.2²).

    The frequencies are no `nn.Linear`: as in the release, skills do not adapt them.

    Args:
        num_features: width of the result, even.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.empty(num_features // 2).normal_(std=0.2))

    def forward(self, times: Int[Tensor, " rows"]) -> Float[Tensor, "rows features"]:
        """Return [cos(2 pi t w), sin(2 pi t w)]."""
        angles = times.to(self.frequencies.dtype).unsqueeze(1) * (2 * math.pi * self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualNetwork(Denoiser):
    """PSEC's network: Fourier features of the time, a condition MLP, a residual MLP (LN_Resnet of IDQL).

    The noisy action, the observation and the condition are concatenated, projected to `hidden`, pass through
    `num_blocks` blocks {dropout, LayerNorm, Linear, mish, Linear, + input}, and after one more mish to the
    action's width. The outer layers and the condition MLP start Xavier-uniform, those of the blocks as
    LeCun's normal, biases at zero. 1.65 M parameters with the defaults. The activation is mish everywhere;
    the release trains its base so, but runs some skills over it with swish.

    Args:
        config: sizes.
        observation_dim: width of an observation.
        action_dim: width of an action.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration of the residual network. The defaults are those of PSEC's release."""

        name: Literal["residual"] = "residual"
        """Name of the network."""
        hidden: Annotated[int, Ge(1)] = 256
        """Width between the blocks, a quarter of that inside (release: 256)."""
        num_blocks: Annotated[int, Ge(1)] = 3
        """Residual blocks (release: 3)."""
        time_features: Annotated[int, Ge(2)] = 64
        """Fourier features of the time; the condition MLP is twice as wide (release: 64; 128 for D4RL)."""
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
        """Dropout before each block, in training (release: 0.1)."""

        def __post_init__(self) -> None:
            _require_sizes(self.hidden, self.num_blocks, self.time_features)

        def build(self, observation_dim: int, action_dim: int) -> ResidualNetwork:
            """Build the network with new weights."""
            return ResidualNetwork(self, observation_dim, action_dim)

        def num_params(self, observation_dim: int, action_dim: int) -> int:
            """Return the number of parameters, without building anything."""
            width, time = self.hidden, self.time_features
            condition = time // 2 + _affine(time, 2 * time) + _affine(2 * time, 2 * time)
            block = 2 * width + _affine(width, 4 * width) + _affine(4 * width, width)
            first = _affine(action_dim + observation_dim + 2 * time, width)
            return condition + first + self.num_blocks * block + _affine(width, action_dim)

    def __init__(self, config: Config, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        width, condition = config.hidden, 2 * config.time_features
        self.features = FourierFeatures(config.time_features)
        self.condition = nn.Sequential(
            _outer(config.time_features, condition), nn.Mish(), _outer(condition, condition)
        )
        self.first = _outer(action_dim + observation_dim + condition, width)
        self.blocks = nn.ModuleList(_Block(width, config.dropout) for _ in range(config.num_blocks))
        self.last = _outer(width, action_dim)

    @override
    def forward(
        self,
        actions: Float[Tensor, "rows actions"],
        times: Int[Tensor, " rows"],
        observations: Float[Tensor, "rows observations"],
    ) -> Float[Tensor, "rows actions"]:
        condition = self.condition(self.features(times))
        x = self.first(torch.cat([actions, observations, condition], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.last(F.mish(x))  # type: ignore[no-any-return]


class PlainNetwork(Denoiser):
    """A small network: Fourier features of the time and `num_layers` times {Linear, LayerNorm, mish}.

    Ours, for short runs: 0.15 M parameters with the defaults.

    Args:
        config: sizes.
        observation_dim: width of an observation.
        action_dim: width of an action.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config:
        """Configuration of the small network."""

        name: Literal["mlp"] = "mlp"
        """Name of the network."""
        hidden: Annotated[int, Ge(1)] = 256
        """Width of the hidden layers."""
        num_layers: Annotated[int, Ge(1)] = 3
        """Number of hidden layers."""
        time_features: Annotated[int, Ge(2)] = 16
        """Number of Fourier features of the time."""

        def __post_init__(self) -> None:
            _require_sizes(self.hidden, self.num_layers, self.time_features)

        def build(self, observation_dim: int, action_dim: int) -> PlainNetwork:
            """Build the network with new weights."""
            return PlainNetwork(self, observation_dim, action_dim)

        def num_params(self, observation_dim: int, action_dim: int) -> int:
            """Return the number of parameters, without building anything."""
            width, time = self.hidden, self.time_features
            first = time // 2 + _affine(action_dim + observation_dim + time, width)
            layers = (self.num_layers - 1) * _affine(width, width) + self.num_layers * 2 * width
            return first + layers + _affine(width, action_dim)

    def __init__(self, config: Config, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        width, joined = config.hidden, action_dim + observation_dim + config.time_features
        self.features = FourierFeatures(config.time_features)
        layers: list[nn.Module] = []
        for number in range(config.num_layers):
            layer = _inner(width, width) if number else _outer(joined, width)
            layers += [layer, nn.LayerNorm(width, eps=NORM_EPSILON), nn.Mish()]
        self.layers = nn.Sequential(*layers, _outer(width, action_dim))

    @override
    def forward(
        self,
        actions: Float[Tensor, "rows actions"],
        times: Int[Tensor, " rows"],
        observations: Float[Tensor, "rows observations"],
    ) -> Float[Tensor, "rows actions"]:
        joined = torch.cat([actions, observations, self.features(times)], dim=1)
        return self.layers(joined)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.up = _inner(width, 4 * width)
        self.down = _inner(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.mish(self.up(self.norm(self.dropout(x)))))  # type: ignore[no-any-return]


def _outer(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _inner(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    # Flax's default: a normal cut at two standard deviations, scaled so that its variance is 1 / fan-in.
    std = width_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def _affine(width_in: int, width_out: int) -> int:
    return (width_in + 1) * width_out


def _require_sizes(hidden: int, num_layers: int, time_features: int) -> None:
    if hidden < 1 or num_layers < 1:
        raise RecipeError(f"a network needs a positive width and depth, not {hidden} and {num_layers}")
    if time_features < 2 or time_features % 2:
        raise RecipeError(f"network.time_features must be even and at least 2, not {time_features}")
