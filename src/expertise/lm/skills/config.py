"""What is said of a skill, or a composition, that is to be learnt."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar

from annotated_types import Ge

from expertise.errors import RecipeError
from expertise.lm.data import DataConfig
from expertise.lm.recipe import EvaluationConfig
from expertise.mixture.routers import ROUTERS
from expertise.mixture.routers.configs import RouterConfig
from expertise.runs import recipe as recipes
from expertise.runs.config import TrainConfig
from expertise.runs.optim import OptimizerConfig
from expertise.runs.recipe import Choice
from expertise.skills.composed_json import Reads
from expertise.skills.learn import SkillConfig

T = TypeVar("T", "LearnConfig", "ComposeConfig")


_ROUTER = Choice(
    ROUTERS,
    default="context",
    preset={
        "context": {"hidden": [64], "squash": "softmax", "normalize": True},
        "fixed": {"learn": True},
        "top_k": {"k": 2},
        "top_p": {"p": 0.7},
    },
)
"""A router over skills of a language model, and what its keys are where nobody sets them."""


def _adam(learning_rate: float) -> OptimizerConfig:
    """AdamW for few, new parameters: a short warm-up, no decay."""
    return OptimizerConfig(learning_rate=learning_rate, schedule="cosine", warmup=10, weight_decay=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """A new skill of a language model: data, factors, training."""

    data: DataConfig
    """What it is learnt from; messages without a template take the base's own."""
    skill: SkillConfig = dataclasses.field(default_factory=SkillConfig)
    """Which weights it adapts, and how strongly."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: _adam(5e-3))
    """AdamW and its schedule."""
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(steps=300, batch_size=16))
    """How long, how much at once; `seed` is also that of the factors' start."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Looks at held-out text, before and after."""
    context: Annotated[int, Ge(0)] = 0
    """Tokens of a window; 0: the base's context, at most 1,024."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """A router over skills, learnt from a little data of the target task."""

    data: DataConfig
    """Text of the target task."""
    router: Annotated[RouterConfig, _ROUTER] = dataclasses.field(default_factory=_ROUTER.config)
    """Who decides alpha; the width of a context router is that of what it reads, whatever stands here."""
    reads: Reads = "pooled"
    """What it sees: "token", "pooled" (the text so far) or "layer" (a router for each adapted layer)."""
    source: str = ""
    """The module whose output it sees; empty: the input embedding."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: _adam(1e-2))
    """AdamW and its schedule."""
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(steps=150, batch_size=8))
    """How long, how much at once; `seed` is also that of the router's start."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Looks at held-out text."""
    context: Annotated[int, Ge(0)] = 0
    """Tokens of a window; 0: the base's context, at most 1,024."""

    def __post_init__(self) -> None:
        if self.reads == "context":
            raise RecipeError("a language model's router reads tokens: reads is token, pooled or layer")
        router: Any = self.router
        if not router.num_params(1, 1):
            raise RecipeError(
                f"a {router.name} router learns nothing here: choose another one",
                "constant weights are given by --weights, without a router",
            )
        if getattr(router, "context_dim", 0):
            # Version 0.1.0 wrote a number here that meant nothing: its recipes are these.
            object.__setattr__(self, "router", dataclasses.replace(router, context_dim=0))


def config_of(cls: type[T], settings: list[str]) -> T:
    """A configuration from its defaults and settings of the form `a.b=c`.

    Args:
        cls: `LearnConfig` or `ComposeConfig`.
        settings: as `--set` takes them; `data.source` must be among them.

    Raises:
        RecipeError: a key is unknown, or a value does not fit.
    """
    defaults = recipes.parse(recipes.to_toml(cls(data=DataConfig())), "the defaults")
    return recipes.build(recipes.override(defaults, settings), cls)
