"""What learning takes: transitions as tensors, in rows; and the scale on which networks see observations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from expertise.shapes import Float, Int


@dataclasses.dataclass(frozen=True)
class Batch:
    """Transitions, in any order. A whole data set is one, too."""

    observations: Float[Tensor, "rows observations"]
    """What was seen, float32."""
    actions: Float[Tensor, "rows actions"]
    """What was done, within ±1, float32."""
    rewards: Float[Tensor, " rows"]
    """What it gave, float32, on the scale that the critics are to learn."""
    next_observations: Float[Tensor, "rows observations"]
    """What was seen then, float32."""
    terminals: Float[Tensor, " rows"]
    """1 where nothing follows, else 0. (For DSRL the release takes timeouts for ends, too.)"""
    costs: Float[Tensor, " rows"] | None = None
    """What it cost, float32; None: the data has no costs."""

    def __len__(self) -> int:
        """The number of rows."""
        return self.observations.shape[0]

    def take(self, rows: Int[Tensor, " chosen"]) -> Batch:
        """The transitions of some rows, in their order."""
        return self._each(lambda tensor: tensor.index_select(0, rows))

    def to(self, device: torch.device) -> Batch:
        """The transitions on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        costs = None if self.costs is None else change(self.costs)
        return Batch(
            change(self.observations),
            change(self.actions),
            change(self.rewards),
            change(self.next_observations),
            change(self.terminals),
            costs,
        )


class Scale(nn.Module):
    """Brings observations to mean 0 and standard deviation 1, by buffers `mean` and `std`.

    At first it changes nothing.

    Args:
        observation_dim: width of an observation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))

    def fit(self, observations: Float[Tensor, "rows observations"]) -> None:
        """Take mean and standard deviation from data.

        A component that hardly varies there keeps its scale: where it does vary later, dividing by next to
        nothing would drown all the others. Where every component is small, 0.001 is too high a bound for
        "hardly": there it is 1 % of the largest deviation, and more than what rounding alone leaves.
        """
        wide = observations.cpu().double()  # Metal has no float64
        mean, std = wide.mean(0), wide.std(0, correction=0)
        varies = (std > 1e-3) | ((std > 0.01 * std.max()) & (std > 1e-6 * mean.abs()))
        self.mean.copy_(mean)
        self.std.copy_(std.where(varies, 1.0))

    def forward(self, observations: Float[Tensor, "rows observations"]) -> Float[Tensor, "rows observations"]:
        """(observations - mean) / std."""
        return (observations - self.mean) / self.std
