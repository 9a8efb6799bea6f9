"""Recipe for training critics."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from expertise.errors import DataError
from expertise.policy.critics import CriticsConfig
from expertise.policy.data import DataConfig, Transitions
from expertise.policy.learn.common import (
    PlainOptimizer,
    Prepared,
    batch_of,
    described,
    facts_of,
    read_all,
)
from expertise.policy.learn.doubts import ended_by_time, of_scale
from expertise.policy.task import CriticTask
from expertise.runs.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticsRecipe:
    """Critics of a data set, all at once. PSEC's release: up to 100 k steps of 2048 for DSRL."""

    kind: Literal["critics"] = "critics"
    """Kind of the recipe."""
    data: list[DataConfig]
    """The transitions to learn from."""
    critics: CriticsConfig
    """The critics to train."""
    train: TrainConfig
    """Number of steps, batch size and other settings of the training loop."""
    rewards: Literal["plain", "range"] = "plain"
    """Scale of the rewards: "plain" as they are, "range" times steps of the longest trajectory / (greatest -
    least return) of the data (release, which takes both from the environment)."""
    timeouts_end: bool = False
    """Treat the end of a trajectory by time limit as terminal (release, for DSRL)."""
    optimizer: PlainOptimizer = dataclasses.field(default_factory=PlainOptimizer)
    """Adam and its learning rate."""

    def prepare(self) -> Prepared:
        """Read the data and build the critics; see `LearnRecipe`."""
        data = read_all(self.data)
        factor = _reward_factor(data) if self.rewards == "range" else 1.0
        batch = batch_of(data, reward_factor=factor, timeouts_end=self.timeouts_end)
        torch.manual_seed(self.train.seed)
        critics = self.critics.build_for(batch)
        normalized = self.critics.normalize
        warnings = [
            *ended_by_time(data, self.data, self.timeouts_end),
            *of_scale(batch.observations, critics.scale, normalized=normalized, key="critics.normalize"),
        ]
        task = CriticTask(critics, batch, self.train)
        return Prepared(task=task, facts=facts_of(data), note=described(data), warnings=warnings)


def _reward_factor(data: Transitions) -> float:
    returns = data.returns()
    spread = float(returns.max() - returns.min())
    if not spread:
        raise DataError('rewards = "range" needs trajectories with different returns', 'set it to "plain"')
    longest: int = max(rows.stop - rows.start for rows in data.trajectories())
    return longest / spread
