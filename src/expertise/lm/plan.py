"""Parameters, FLOPs and checkpoint sizes of a recipe's model, counted without making tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from expertise.lm.recipe import Recipe

_FLOAT32 = 4
"""Bytes of a number in a checkpoint: weights and moments are stored in float32, whatever products run in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of one recipe's model. The kinds of parameters are those of `ModelConfig.num_params_by_kind`."""

    name: str
    """Name of the recipe."""
    parameters_total: int
    """Number of all parameters."""
    parameters_activated: int
    """Number of parameters that one token uses."""
    parameters_by_kind: dict[str, int]
    """Parameters of each kind."""
    parameters_activated_by_kind: dict[str, int]
    """Parameters of each kind that one token uses."""
    flops_per_sequence: float
    """FLOPs of a forward and a backward pass over `context` tokens; see `ModelConfig.flops_per_sequence`."""
    flops_per_token: float
    """`flops_per_sequence` divided by the number of tokens."""
    context: int
    """Tokens of a sequence."""
    vocab_size: int
    """Rows of the embedding; the tokenizer's size where the model leaves it open."""
    layers: dict[str, int]
    """Number of layers that are mixtures (`mixture`) and that are not (`dense`)."""
    parts_per_token: float
    """Mean over the mixture layers of the parts per token that the activated parameters are counted at."""
    assumed_parts: float | None
    """`parts_per_token` if it is an assumption, as for top-p routers; None if it is fixed."""
    tokens: int
    """Number of tokens that the recipe trains on."""
    checkpoint_bytes: dict[str, int]
    """Bytes of the tensors of one checkpoint: `weights`, `optimizer` (AdamW's two moments), `total`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON, without an `assumed_parts` of None."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def plan(name: str, recipe: Recipe) -> Plan:
    """Count parameters, FLOPs and checkpoint bytes of a recipe's model.

    Args:
        name: name of the recipe.
        recipe: the recipe; it need not name data.

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
    """Return the vocabulary's size: a given tokenizer's, else the largest that a trained one can have."""
    if not recipe.tokenizer.path:
        return recipe.tokenizer.vocab_size
    from expertise.lm.data.tokenizer import end_of_text, load_tokenizer, vocab_size

    tokenizer = load_tokenizer(Path(recipe.tokenizer.path))
    end_of_text(tokenizer)  # adds one if there is none, as training does
    return vocab_size(tokenizer)
