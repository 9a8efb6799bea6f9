"""Evaluating a model by its path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertise.errors import RecipeError, nearest
from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig, Prepared, prepare
from expertise.lm.evaluate.perplexity import domain_texts, evaluate
from expertise.lm.evaluate.switches import Switches, switched
from expertise.lm.initial import tokenizer_of
from expertise.lm.load import find_checkpoint, load_checkpoint
from expertise.lm.notes import notes_of
from expertise.lm.open import open_model
from expertise.lm.reading import prepare_for, window_of
from expertise.lm.recipe import EvaluationConfig, Recipe
from expertise.lm.train import data_of, refuse_other_text
from expertise.runs import checkpoint, folder
from expertise.runs.device import limit_threads
from expertise.skills.composed_json import is_composed, read_composed

SPLITS = ("validation", "test")


def evaluate_model(
    path: Path | str,
    split: str,
    max_bytes: int,
    device: str,
    threads: int,
    say: Callable[[str], None],
    switches: Switches | None = None,
    *,
    data: DataConfig | None = None,
    base: Path | str | None = None,
) -> dict[str, Any]:
    """Bits per byte per domain of any language model.

    Args:
        path: a run, a checkpoint, a composed model, or a model of transformers.
        split: "validation" or "test".
        max_bytes: text of each domain; 0: all.
        device: where to compute.
        threads: CPU threads; 0: one per core.
        say: told what happens.
        switches: evaluate the model under these; None: as it was trained.
        data: on which text; None: the one that the run was trained on, or the composed model's router.
        base: for a composed model: where its base is now.

    Returns:
        As `evaluate_run`; a composed model also has `skills`: domain → skill → mean weight. `step` is None
        where there is none.

    Raises:
        RecipeError: no text is known, or a switch makes no sense for this model.
    """
    where = Path(path)
    if data is None and base is None and (folder.is_run(where) or checkpoint.is_checkpoint(where)):
        return evaluate_run(where, split, max_bytes, device, threads, say, switches)
    require_split(split)
    limit_threads(threads)
    opened = open_with_text(path, say, data=data, base=base, device=device)
    found = _evaluated(
        opened.model,
        opened.prepared,
        split,
        max_bytes,
        switches,
        opened.window,
        EvaluationConfig().batch_size,
        opened.bfloat16,
    )
    return {**found, "step": None}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model, and text that it can be looked at on."""

    model: CausalLM
    prepared: Prepared
    window: int
    """Tokens of a window."""
    bfloat16: bool
    """Whether products are computed in bfloat16."""


def open_with_text(
    path: Path | str,
    say: Callable[[str], None],
    *,
    data: DataConfig | None = None,
    base: Path | str | None = None,
    device: str = "cpu",
) -> Opened:
    """A model by its path, with the text that is given, or that a composed model's router was learnt from.

    Args:
        path: any model; without data a composed one.
        say: told what is being built.
        data: which text.
        base: for a composed model: where its base is now.
        device: where to compute.

    Raises:
        RecipeError: no text is known.
        RunError: the text of a composed model has changed.
    """
    where = Path(path)
    model = open_model(path, device, base)
    if data is not None:
        return Opened(model, prepare_for(model, data, say), window_of(model), bfloat16=False)
    if not is_composed(where):
        raise RecipeError(f"{path} does not say on what text it was trained", "name some with --data")
    composed = read_composed(where)
    notes = notes_of(composed)
    if notes.data is None:
        raise RecipeError(f"{path} was composed without any text", "name some with --data")
    prepared = prepare_for(model, notes.data, say)
    refuse_other_text(where, composed.data_digest, prepared.digest)
    return Opened(model, prepared, window_of(model, notes.context), notes.bfloat16)


def evaluate_run(
    path: Path,
    split: str,
    max_bytes: int,
    device: str,
    threads: int,
    say: Callable[[str], None],
    switches: Switches | None = None,
) -> dict[str, Any]:
    """Bits per byte per domain and parts per token of a run on its own held-out text.

    Args:
        path: a run, or a checkpoint inside one.
        split: "validation" or "test".
        max_bytes: text of each domain; 0: all.
        device: where to compute.
        threads: CPU threads; 0: one per core.
        say: told what happens.
        switches: evaluate the model under these; None: as it was trained.

    Returns:
        `bits_per_byte` (with `mean`), `parts_per_token` (`mean`, `layers`, `domains`), `tasks`, `loads`,
        `bytes`, `split`, `step`, `switches` (those that are on).
    """
    require_split(split)
    limit_threads(threads)
    run = path.parent.parent if checkpoint.is_checkpoint(path) else path
    recipe = folder.read_recipe(run, Recipe)
    found = find_checkpoint(path)
    model = load_checkpoint(found, device)
    evaluated = _evaluated(
        model,
        text_of(run, recipe, say),
        split,
        max_bytes,
        switches,
        model.context,
        recipe.evaluation.batch_size,
        recipe.train.bfloat16,
    )
    return {**evaluated, "step": found.step}


def _evaluated(
    model: CausalLM,
    prepared: Prepared,
    split: str,
    max_bytes: int,
    switches: Switches | None,
    window: int,
    batch_size: int,
    bfloat16: bool,
) -> dict[str, Any]:
    switches = switches or Switches()
    with switched(model, switches):
        texts = domain_texts(prepared, split, max_bytes, window)
        result = evaluate(model, texts, batch_size, bfloat16).to_json()
    parts = result.pop("parts_per_token", {"mean": 0.0, "layers": [], "domains": {}})
    return {"bits_per_byte": result.pop("bits_per_byte"), "parts_per_token": parts, "tasks": {}, **result} | {
        "split": split,
        "switches": switches.to_json(),
    }


def require_split(split: str) -> None:
    """Refuse a split that is not held out."""
    if split not in SPLITS:
        raise RecipeError(f"no split {split!r}", nearest(split, SPLITS))


def text_of(run: Path, recipe: Recipe, say: Callable[[str], None]) -> Prepared:
    """The text that a run was trained on, built again if its cache is gone.

    Raises:
        RunError: the sources now give other text.
    """
    prepared = prepare(recipe.read_data, tokenizer_of(recipe, run), say)
    refuse_other_text(run, data_of(run)["digest"], prepared.digest)
    return prepared
