"""Encode text with the tokenizer and the chat template of a given model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from expertise.errors import RecipeError, RunError
from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig, HeldOut, Prepared, all_of, prepare

if TYPE_CHECKING:
    import tokenizers

LONGEST_WINDOW = 1024
"""Default length of a window in tokens; contexts of published models are far longer."""


def prepare_for(model: CausalLM, data: DataConfig, say: Callable[[str], None]) -> Prepared:
    """Encode text with a model's own tokenizer and, for messages, its own chat template.

    Args:
        model: any language model.
        data: configuration of the text; a template that it names is used.
        say: called with each line of progress.

    Raises:
        RunError: the model has no tokenizer.
        DataError: the text is missing, unreadable or too small.
    """
    return prepare(*_as_read(model, data), say)


def all_for(model: CausalLM, data: DataConfig, say: Callable[[str], None]) -> HeldOut:
    """Encode text for evaluation: none of it is divided off for training."""
    return all_of(*_as_read(model, data), say)


def _as_read(model: CausalLM, data: DataConfig) -> tuple[DataConfig, tokenizers.Tokenizer]:
    if model.tokenizer is None:
        raise RunError("this model has no tokenizer: it can read no text")
    if data.kind == "messages" and not (data.template or data.template_file) and model.chat is not None:
        data = dataclasses.replace(data, template=model.chat.template)
    return data, model.tokenizer


def window_of(model: CausalLM, asked: int = 0) -> int:
    """Return the tokens per window: as asked, or as the model's context allows, at most `LONGEST_WINDOW`.

    Raises:
        RecipeError: the asked length exceeds the context.
    """
    if asked > model.context:
        raise RecipeError(f"context ({asked}) is more than the model's, {model.context}")
    return asked or min(model.context, LONGEST_WINDOW)
