"""Transitions in rows, recorded or to learn from; and the scale on which networks see observations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from expertise.shapes import Bool, Float, Int

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclasses.dataclass(frozen=True)
class Rows(Generic[Array]):
    """Transitions, one a row: NumPy arrays when recorded (`Transitions`), tensors to learn from (`Batch`)."""

    observations: Float[Array, "rows observations"]
    """What was seen, float32."""
    actions: Float[Array, "rows actions"]
    """What was done, within ±1, float32."""
    rewards: Float[Array, " rows"]
    """What it gave, float32: as the environment gave it, or on the scale that critics are to learn."""
    next_observations: Float[Array, "rows observations"]
    """What was seen then, float32. After a terminal row nobody asks for it."""
    terminals: Float[Array, " rows"] | Bool[Array, " rows"]
    """True (to learn from: 1) where nothing can follow."""
    costs: Float[Array, " rows"] | None = None
    """What it cost, float32; None: the data have no costs."""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.observations)

    def arrays(self) -> dict[str, Array]:
        """Name → array, of those that are there."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if hasattr(getattr(self, name), "shape")}


@dataclasses.dataclass(frozen=True)
class Batch(Rows[Tensor]):
    """Transitions as tensors, in any order. A whole data set is one, too.

    For DSRL the release counts timeouts among `terminals`; see `learn.common.batch_of`.
    """

    def take(self, rows: Int[Tensor, " chosen"]) -> Batch:
        """The transitions of some rows, in their order."""
        return self._each(lambda tensor: tensor.index_select(0, rows))

    def to(self, device: torch.device) -> Batch:
        """The transitions on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(**{name: change(tensor) for name, tensor in self.arrays().items()})


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
