"""Everything that a recipe says about training a language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from expertise.errors import DataError, RecipeError
from expertise.lm.config import ModelConfig
from expertise.lm.data import DataConfig, TokenizerConfig
from expertise.lm.data.chat import CHATML
from expertise.lm.data.sources import check_paths
from expertise.runs import config, folder
from expertise.runs.config import TrainConfig
from expertise.runs.files import expand_paths
from expertise.runs.optim import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Coefficients of the losses on the routes; each loss is summed over the mixture layers."""

    expert: Annotated[float, Ge(0)] = 0.0
    """Of the expert-level balance loss (alpha; DeepSeekMoE Eq. 12)."""
    per: Literal["batch", "sequence"] = "batch"
    """Where expert and device balance count loads: over a micro-batch's tokens, or over each sequence."""
    device: Annotated[float, Ge(0)] = 0.0
    """Of the device-level balance loss (DeepSeekMoE Eq. 15); its loads are counted as `per` says."""
    device_groups: Annotated[int, Ge(1)] = 1
    """Into how many groups of consecutive parts it divides each layer."""
    entropy: Annotated[float, Ge(0)] = 0.0
    """Of the entropy of the affinities, the dynamic loss (Dynamic MoE §2.3)."""
    z: Annotated[float, Ge(0)] = 0.0
    """Of the router z-loss (arXiv 2202.08906)."""

    def coefficients(self) -> dict[str, float]:
        """Loss → its coefficient."""
        return {"expert": self.expert, "entropy": self.entropy, "device": self.device, "z": self.z}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """On how much held-out text a run looks while it trains."""

    bytes_per_domain: Annotated[int, Ge(1)] = 65_536
    """Validation text of each domain per evaluation, in bytes."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Sequences at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A language model from text to checkpoint."""

    data: DataConfig
    """The text."""
    model: ModelConfig
    """The architecture."""
    optimizer: OptimizerConfig
    """AdamW and its schedule."""
    train: TrainConfig
    """How long and how much at once."""
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    """Trained on the text, or given."""
    balance: BalanceConfig = dataclasses.field(default_factory=BalanceConfig)
    """Losses on the routes."""
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    """Looks at held-out text."""
    init: str = ""
    """A run or a checkpoint whose weights and tokenizer a new run starts from; empty: from random weights."""

    def __post_init__(self) -> None:
        expand_paths(self, "init")
        router = self.model.router
        asked = [name for name, value in self.balance.coefficients().items() if value]
        if router is not None and asked and not router.has_logits():
            raise RecipeError(
                f"balance.{asked[0]} needs a router that learns probabilities; {router.name!r} does not",
                f"leave balance.{asked[0]} out, or set it to 0",
            )
        layers = [layer for layer in map(self.model.layer, range(self.model.num_layers)) if layer is not None]
        fewest = min((layer.parts.num_parts for layer in layers), default=0)
        if self.balance.device and layers and self.balance.device_groups > fewest:
            raise RecipeError(
                f"balance.device_groups ({self.balance.device_groups}) exceeds a layer's parts ({fewest})"
            )

    @property
    def read_data(self) -> DataConfig:
        """The text as a run reads it.

        A run's recipe has its chat template in full; an older one that has none means ChatML, whatever stands
        beside its tokenizer now.
        """
        data = self.data
        states = data.kind != "messages" or data.template or data.template_file
        return data if states else dataclasses.replace(data, template=CHATML)

    @property
    def applied_balance(self) -> BalanceConfig:
        """The losses on the routes that training adds: none where a family's router learns nothing.

        Named by hand such a router and such a loss are refused together; within a family, where one table
        serves all, they are not.
        """
        router = self.model.feed_forward.router
        return self.balance if router is None or router.has_logits() else BalanceConfig()

    def why_kept(self, key: str) -> str:
        """Why a run of this recipe cannot go on with another value of a dotted key; empty: it can."""
        balance = self.applied_balance
        if key != "train.accumulation" or self.model.router is None or balance.per != "batch":
            return ""
        used = [name for name in ("expert", "device") if balance.coefficients()[name]]
        if not used:
            return ""
        return (
            f'with balance.per = "batch" balance.{used[0]} counts loads over one micro-batch: '
            "in other pieces the run would train on another loss"
        )


def refuse_early(recipe: Recipe, run: Path) -> None:
    """Refuse what can be refused by names alone; nothing is read but a run's recipe, and torch is not needed.

    Args:
        recipe: what to train.
        run: the run's folder.

    Raises:
        RunError: the folder holds something else, or a run of another recipe.
        RecipeError: the recipe names no data.
        DataError: data or a tokenizer are not there.
    """
    folder.require_free_or_run(run)
    if folder.is_run(run):
        folder.refuse_changes(run, recipe, may_change)
    check_paths(recipe.data)
    path = recipe.tokenizer.path
    if path and not Path(path).is_file():
        raise DataError(
            f"cannot read the tokenizer {path}: "
            + ("it is a folder" if Path(path).is_dir() else "there is no such file"),
            "tokenizer.path names a tokenizer.json; leave it out to train one",
        )


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of this key."""
    return config.may_change(key) or key == "evaluation.batch_size"
