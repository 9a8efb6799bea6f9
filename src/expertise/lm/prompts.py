"""Prompts and results of `generate`: text, token ids, or lists of either."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expertise.errors import RecipeError, json_kind
from expertise.lm.causal import CausalLM
from expertise.lm.generate import Sampling, stream
from expertise.lm.text import continue_text, stop_ids


def continued(
    model: CausalLM,
    given: Any,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None = None,
    stop: str | int | Sequence[int] | None = None,
) -> Any:
    """Continue each prompt, and return prompt and continuation in the form in which it was given.

    Args:
        model: any language model; it needs its tokenizer if text is given.
        given: text; token ids as a list or as a tensor `[T]`; several texts or lists of ids, each continued
            by itself; or a tensor `[B, T]`, whose rows are sampled together.
        max_new_tokens: maximum number of tokens to add.
        sampling: settings of the sampling.
        seed: seed of the sampling; None: a new one.
        stop: text of one token, or ids, that end a prompt. A text also ends where the model ends a text.

    Raises:
        RecipeError: the prompt has another type, is empty or longer than the context, or holds unknown ids.
        RunError: there is text in the prompt or in `stop`, and the model has no tokenizer.
    """
    if isinstance(given, str):
        pieces = continue_text(
            model,
            given,
            max_new_tokens=max_new_tokens,
            seed=seed,
            stop=stop,
            **dataclasses.asdict(sampling),
        )
        return given + "".join(piece.text for piece in pieces)
    stops = stop_ids(model.tokenizer, stop)
    if isinstance(given, Tensor):
        _require_ids(given)
        rows = given if given.ndim == 2 else given[None]
        added = [step.tokens for step in stream(model, rows, max_new_tokens, sampling, seed, stops)]
        whole = torch.cat([rows, *(column[:, None].to(rows.device) for column in added)], dim=1)
        return whole if given.ndim == 2 else whole[0]
    if not isinstance(given, Sequence) or not given:
        what = "an empty list" if isinstance(given, Sequence) else json_kind(given)
        raise RecipeError(f"generate continues text, token ids, or lists of either, not {what}")
    if all(isinstance(each, str | Sequence | Tensor) for each in given):
        return [continued(model, each, max_new_tokens, sampling, seed, stop) for each in given]
    row = torch.tensor([[_as_id(each) for each in given]], dtype=torch.int64)
    steps = stream(model, row, max_new_tokens, sampling, seed, stops)
    return [*map(int, row[0]), *(int(step.tokens[0]) for step in steps)]


def _require_ids(given: Tensor) -> None:
    if given.ndim not in (1, 2):
        raise RecipeError(
            f"token ids are a tensor of one row or of several, not of shape {list(given.shape)}"
        )
    if given.is_floating_point() or given.is_complex() or given.dtype is torch.bool:
        raise RecipeError(f"token ids are whole numbers, not {given.dtype}")


def _as_id(value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        shown = repr(value) if isinstance(value, float) else json_kind(value)
        raise RecipeError(f"token ids are whole numbers, this list holds {shown}") from None
