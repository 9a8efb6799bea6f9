"""Evaluating a model by its path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig
from expertise.lm.data.split import require_split
from expertise.lm.evaluate.perplexity import domain_texts, evaluate
from expertise.lm.evaluate.switches import Switches, switched
from expertise.lm.evaluate.texts import Look, own_or_given, run_text
from expertise.lm.load import find_checkpoint, load_checkpoint
from expertise.lm.notes import notes_of
from expertise.lm.open import open_model
from expertise.lm.reading import window_of
from expertise.lm.recipe import EvaluationConfig, Recipe
from expertise.runs import checkpoint, folder
from expertise.runs.device import limit_threads
from expertise.skills.composed_json import is_composed, read_composed


def evaluate_model(
    path: Path | str,
    split: str | None,
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
        split: "validation" or "test"; of given text also "all". None: all of given text, else validation.
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
        return evaluate_run(where, split or "validation", max_bytes, device, threads, say, switches)
    require_split(split, given=True)
    limit_threads(threads)
    opened = open_with_text(path, split, say, data=data, base=base, device=device)
    found = _evaluated(
        opened.model,
        opened.look,
        max_bytes,
        switches,
        opened.window,
        EvaluationConfig().batch_size,
        opened.bfloat16,
        say,
    )
    return {**found, "step": None}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model, and text that it can be looked at on."""

    model: CausalLM
    look: Look
    """The text."""
    window: int
    """Tokens of a window."""
    bfloat16: bool
    """Whether products are computed in bfloat16."""


def open_with_text(
    path: Path | str,
    split: str | None,
    say: Callable[[str], None],
    *,
    data: DataConfig | None = None,
    base: Path | str | None = None,
    device: str = "cpu",
) -> Opened:
    """A model by its path, with the text that is given, or that a composed model's router was learnt from.

    Args:
        path: any model; without data a composed one.
        split: the side of the text; None: all of given text, else validation.
        say: told what is being built.
        data: which text.
        base: for a composed model: where its base is now.
        device: where to compute.

    Raises:
        RecipeError: no text is known, or it has no such side.
        RunError: the text of a composed model has changed, and its folder does not keep it.
    """
    model = open_model(path, device, base)
    look = own_or_given(model, path, data, split, say)
    if data is not None or not is_composed(Path(path)):
        return Opened(model, look, window_of(model), bfloat16=False)
    notes = notes_of(read_composed(Path(path)))
    return Opened(model, look, window_of(model, notes.context), notes.bfloat16)


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
        `bytes` and `documents` (what was scored, by domain), `split`, `text` (in words), `source_changed`,
        `step`, `switches` (those that are on). What is a mean over nothing is None.
    """
    require_split(split)
    limit_threads(threads)
    run = path.parent.parent if checkpoint.is_checkpoint(path) else path
    recipe = folder.read_recipe(run, Recipe)
    found = find_checkpoint(path)
    model = load_checkpoint(found, device)
    evaluated = _evaluated(
        model,
        run_text(run, recipe, split, say, found),
        max_bytes,
        switches,
        model.context,
        recipe.evaluation.batch_size,
        recipe.train.bfloat16,
    )
    return {**evaluated, "step": found.step}


def _evaluated(
    model: CausalLM,
    look: Look,
    max_bytes: int,
    switches: Switches | None,
    window: int,
    batch_size: int,
    bfloat16: bool,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    switches = switches or Switches()
    with switched(model, switches):
        texts = domain_texts(look.text, look.split, max_bytes, window)
        if say is not None:
            for text in texts:
                for note in text.windows.notes:
                    say(f"{text.domain}: {note}")
        result = evaluate(model, texts, batch_size, bfloat16).to_json()
    # A dense model takes none; of no token nothing is known.
    none: dict[str, Any] = {"mean": None if model.mixtures() else 0.0, "layers": [], "domains": {}}
    parts = result.pop("parts_per_token", none)
    return {
        "bits_per_byte": result.pop("bits_per_byte"),
        "parts_per_token": parts,
        "tasks": {},
        **result,
        "documents": {text.domain: text.windows.num_documents for text in texts},
        "split": look.split,
        "text": look.words,
        "source_changed": look.changed,
        "switches": switches.to_json(),
    }
