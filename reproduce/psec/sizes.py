"""How long trainings are and what they train; the results file refuses rows of other sizes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from expertise.policy.learn import PlainOptimizer, PolicyOptimizer
from expertise.policy.network import NetworkConfig, PlainNetwork, ResidualNetwork
from expertise.runs.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of one scenario. Release: 1 M steps for a base, 50 k to 200 k for a skill, 1,000 for alpha."""

    network: Literal["mlp", "residual"] = "mlp"
    """"mlp": 256 × 3, 0.15 M parameters; "residual": the paper's, 1.65 M."""
    batch_size: int = 256
    """Transitions of a step (release: 2048 and 512)."""
    base_steps: int = 12000
    """Of a base."""
    skill_steps: int = 4000
    """Of a skill, whatever it is made of."""
    scratch_steps: int = 4000
    """Of a policy from new weights on the target's data."""
    alpha_steps: int = 500
    """Of alpha (release: 1,000)."""
    action_steps: int = 500
    """Of alpha where it learns through the sampler (release, NSEC and ASEC: 1,000)."""
    base_rate: float = 1e-3
    """Learning rate of policies from new weights (release: 3e-4)."""
    skill_rate: float = 2e-4
    """Of skills (release: 3e-4)."""
    alpha_rate: float = 3e-4
    """Of alpha (release: 3e-4)."""
    rank: int = 8
    """Of a skill (paper: 8)."""
    multiplier: float = 16.0
    """On B A x (release's class: 16)."""
    episodes: int = 20
    """That a row is the mean of (paper: 10, and 20 for DSRL)."""

    def settings(self) -> dict[str, Any]:
        """For the results file."""
        return dataclasses.asdict(self)

    def network_config(self, *, dropout: bool = True) -> NetworkConfig:
        """What predicts the noise; only the paper's network has dropout."""
        if self.network == "mlp":
            return PlainNetwork.Config()
        return ResidualNetwork.Config() if dropout else ResidualNetwork.Config(dropout=0.0)

    def train(self, steps: int, seed: int, keep_every: int = 0) -> TrainConfig:
        """One thread on the CPU, so that rows are repeatable and seeds can run side by side."""
        return TrainConfig(
            steps=steps,
            batch_size=self.batch_size,
            seed=seed,
            device="cpu",
            threads=1,
            log_every=max(1, steps // 20),
            keep=1,
            save_every=keep_every,
            keep_every=keep_every,
        )

    def base_optimizer(self) -> PolicyOptimizer:
        """Of policies from new weights."""
        return PolicyOptimizer(learning_rate=self.base_rate)

    def skill_optimizer(self) -> PolicyOptimizer:
        """Of skills."""
        return PolicyOptimizer(learning_rate=self.skill_rate)

    def alpha_optimizer(self) -> PlainOptimizer:
        """Of alpha."""
        return PlainOptimizer(learning_rate=self.alpha_rate)
