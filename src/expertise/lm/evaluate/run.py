"""Evaluating a run by its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertise.errors import RecipeError, nearest
from expertise.lm.data import Prepared, prepare
from expertise.lm.evaluate.perplexity import domain_texts, evaluate
from expertise.lm.evaluate.switches import Switches, switched
from expertise.lm.initial import tokenizer_of
from expertise.lm.load import find_checkpoint, load_checkpoint
from expertise.lm.recipe import Recipe
from expertise.lm.train import data_of, refuse_other_text
from expertise.runs import checkpoint, folder
from expertise.runs.device import limit_threads

SPLITS = ("validation", "test")


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
    if split not in SPLITS:
        raise RecipeError(f"no split {split!r}", nearest(split, SPLITS))
    limit_threads(threads)
    run = path.parent.parent if checkpoint.is_checkpoint(path) else path
    recipe = folder.read_recipe(run, Recipe)
    found = find_checkpoint(path)
    model = load_checkpoint(found, device)
    switches = switches or Switches()
    with switched(model, switches):
        texts = domain_texts(text_of(run, recipe, say), split, max_bytes, model.config.context)
        result = evaluate(model, texts, recipe.evaluation.batch_size, recipe.train.bfloat16).to_json()
    parts = result.pop("parts_per_token", {"mean": 0.0, "layers": [], "domains": {}})
    return {"bits_per_byte": result.pop("bits_per_byte"), "parts_per_token": parts, "tasks": {}, **result} | {
        "split": split,
        "step": found.step,
        "switches": switches.to_json(),
    }


def text_of(run: Path, recipe: Recipe, say: Callable[[str], None]) -> Prepared:
    """The text that a run was trained on, built again if its cache is gone.

    Raises:
        RunError: the sources now give other text.
    """
    prepared = prepare(recipe.data, tokenizer_of(recipe, run), say)
    refuse_other_text(run, data_of(run)["digest"], prepared.digest)
    return prepared
