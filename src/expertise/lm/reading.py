"""Text as a given model reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from expertise.errors import RecipeError, RunError
from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig, Prepared, prepare

LONGEST_WINDOW = 1024
"""Tokens of a window where nobody asks for more; contexts of published models are far longer."""


def prepare_for(model: CausalLM, data: DataConfig, say: Callable[[str], None]) -> Prepared:
    """Text in a model's own tokens and, where it is messages, in its own chat template.

    Args:
        model: any language model.
        data: which text; a template that it names is used.
        say: told what is being built.

    Raises:
        RunError: the model has no tokenizer.
        DataError: the text is missing, unreadable or too small.
    """
    if model.tokenizer is None:
        raise RunError("this model has no tokenizer: it can read no text")
    if data.kind == "messages" and not (data.template or data.template_file) and model.chat is not None:
        data = dataclasses.replace(data, template=model.chat.template)
    return prepare(data, model.tokenizer, say)


def window_of(model: CausalLM, asked: int = 0) -> int:
    """Tokens of a window: as asked, or as the model's context allows, at most `LONGEST_WINDOW`.

    Raises:
        RecipeError: more is asked for than the context holds.
    """
    if asked > model.context:
        raise RecipeError(f"context ({asked}) is more than the model's, {model.context}")
    return asked or min(model.context, LONGEST_WINDOW)
