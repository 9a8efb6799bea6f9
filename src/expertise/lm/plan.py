"""What a recipe's model will take, counted from the recipe alone: no tensor is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from expertise.lm.recipe import Recipe

_FLOAT32 = 4
"""Bytes of a number in a checkpoint: weights and moments are kept in float32, whatever products run in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of one recipe. The kinds of parameters are `ModelConfig.num_params_by_kind`'s."""

    name: str
    """The recipe's name."""
    parameters_total: int
    """All learned numbers."""
    parameters_activated: int
    """Those that one token uses."""
    parameters_by_kind: dict[str, int]
    """All of each kind."""
    parameters_activated_by_kind: dict[str, int]
    """Those of each kind that one token uses."""
    flops_per_sequence: float
    """Forward and backward pass over `context` tokens, as `ModelConfig.flops_per_sequence` counts."""
    flops_per_token: float
    """The same, divided by the number of tokens."""
    context: int
    """Tokens of a sequence."""
    vocab_size: int
    """Rows of the embedding; the tokenizer's size where the model leaves it open."""
    layers: dict[str, int]
    """How many layers are mixtures (`mixture`) and how many not (`dense`)."""
    parts_per_token: float
    """Mean over the mixture layers, of the number that the activated parameters are counted at."""
    assumed_parts: float | None
    """The same where routers leave it to the token and it is assumed; None where it is fixed."""
    tokens: int
    """That the recipe trains on."""
    checkpoint_bytes: dict[str, int]
    """Of the tensors of one checkpoint: `weights`, `optimizer` (AdamW's two moments), `total`."""

    def to_json(self) -> dict[str, Any]:
        """For machines; what is not assumed is left out."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def plan(name: str, recipe: Recipe) -> Plan:
    """Count what a recipe's model takes.

    Args:
        name: of the recipe.
        recipe: its data need not be named.

    Raises:
        DataError: `tokenizer.path` names a file that cannot be read, and the model names no size.
    """
    model = dataclasses.replace(recipe.model, vocab_size=recipe.model.vocab_size or _vocab_size(recipe))
    layers = [layer for layer in map(model.layer, range(model.num_layers)) if layer is not None]
    taken = [layer.router.num_active_parts(layer.parts.num_parts) for layer in layers]
    mean_taken = sum(taken) / len(taken) if taken else 0.0
    assumed = any(hasattr(layer.router, "assumed_parts") for layer in layers)
    total = model.num_params()
    return Plan(
        name=name,
        parameters_total=total,
        parameters_activated=model.num_active_params(),
        parameters_by_kind=model.num_params_by_kind(),
        parameters_activated_by_kind=model.num_active_params_by_kind(),
        flops_per_sequence=model.flops_per_sequence(),
        flops_per_token=model.flops_per_sequence() / model.context,
        context=model.context,
        vocab_size=model.vocab_size,
        layers={"mixture": len(layers), "dense": model.num_layers - len(layers)},
        parts_per_token=mean_taken,
        assumed_parts=mean_taken if assumed else None,
        tokens=recipe.train.steps * recipe.train.batch_size * model.context,
        checkpoint_bytes={
            "weights": _FLOAT32 * total,
            "optimizer": 2 * _FLOAT32 * total,
            "total": 3 * _FLOAT32 * total,
        },
    )


def _vocab_size(recipe: Recipe) -> int:
    """What a run would find: a given tokenizer's size, else the most that a trained one can have."""
    if not recipe.tokenizer.path:
        return recipe.tokenizer.vocab_size
    from expertise.lm.data.tokenizer import end_of_text, load_tokenizer, vocab_size

    tokenizer = load_tokenizer(Path(recipe.tokenizer.path))
    end_of_text(tokenizer)  # adds one where there is none, as training does
    return vocab_size(tokenizer)
