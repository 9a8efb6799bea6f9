"""AdamW with the papers' defaults, and learning-rate schedules."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from expertise.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import nn

Schedule = Literal["steps", "cosine", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, clipping and learning-rate schedule. The defaults are DeepSeekMoE's (§4.1)."""

    learning_rate: Annotated[float, Gt(0)]
    """Peak learning rate."""
    schedule: Schedule = "steps"
    """Schedule after the warm-up: "steps" (x 0.316 at 80 % and again at 90 % of the steps), "cosine" or
    "constant"."""
    warmup: Annotated[int, Ge(0)] = 0
    """Number of steps of linear warm-up."""
    final_ratio: Annotated[float, Ge(0), Le(1)] = 0.1
    """Final learning rate of "cosine", as a share of the peak."""
    schedule_steps: Annotated[int, Ge(0)] = 0
    """Number of steps that the schedule spans; the rate stays constant after them. 0: train.steps."""
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Weight decay of matrices; norms and biases are not decayed."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Decay rate of AdamW's second moment."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """AdamW's epsilon, added to the denominator."""
    clip: Annotated[float, Ge(0)] = 1.0
    """Largest norm of the whole gradient; 0: no clipping."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not math.isfinite(self.learning_rate):
            raise RecipeError(f"optimizer.learning_rate must be positive, not {self.learning_rate}")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step.

        Args:
            step: 0 or more.
            steps: length of the run, and of the schedule where it has none of its own.
        """
        steps = self.schedule_steps or steps
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "steps":
            drops = (step >= 0.8 * steps) + (step >= 0.9 * steps)
            return float(self.learning_rate * 0.316**drops)
        if self.schedule == "cosine":
            progress = (step - self.warmup) / max(1, steps - self.warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
            return self.learning_rate * (self.final_ratio + (1 - self.final_ratio) * cosine)
        return self.learning_rate

    def whole(self) -> OptimizerConfig:
        """The complete optimizer configuration: this one. Other recipes override some of its fields."""
        return self

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """Build the optimizer over a model's trainable parameters: matrices decayed, vectors not."""
        import torch

        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
        return torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=fused,
        )
