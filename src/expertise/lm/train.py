"""Train a language model: from a recipe to a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertise.errors import RunError, amount
from expertise.lm.config import ModelConfig
from expertise.lm.data import HELD_OUT, Prepared, held_out, prepare
from expertise.lm.initial import Initial, initial_of, tokenizer_of
from expertise.lm.load import TOKENIZER
from expertise.lm.recipe import Recipe, may_change, refuse_early
from expertise.lm.show import Example
from expertise.lm.task import LanguageModelTask
from expertise.runs import checkpoint, folder, loop, metrics
from expertise.runs.config import memory_hints
from expertise.runs.device import limit_threads, resolve, shortfalls
from expertise.runs.files import write_atomic
from expertise.runs.schedule import rate_notes

DATA = "data.json"
"""File that describes the training data: digest of the sources, domains, bytes, and the initial weights."""


def train(recipe: Recipe, run: Path, say: Callable[[str], None]) -> None:
    """Start or resume a run.

    Nothing is written to the run before its recipe and its text have been checked.

    Args:
        recipe: the recipe to train.
        run: the run's folder.
        say: called with each line of progress.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    folder.refuse_if_held(run)
    task, prepared, initial = _ready(recipe, run, say)
    with folder.held(run):
        folder.adopt_recipe(run, recipe, may_change)
        _adopt_data(run, prepared, initial)
        if not (run / TOKENIZER).is_file():
            write_atomic(run / TOKENIZER, prepared.tokenizer.to_str())
        accumulation_stays = bool(recipe.why_kept("train.accumulation"))
        hints = memory_hints(recipe.train, "model.context", accumulation_stays=accumulation_stays)
        loop.train(run, task, recipe.train, recipe.optimizer, hints)


def check(recipe: Recipe, run: Path, say: Callable[[str], None], show: int = 0) -> list[Example]:
    """Do everything that `train` does before it writes to the run: check recipe, folder, text and sizes.

    Args:
        recipe: the recipe that would be trained.
        run: the run's folder.
        say: called with each line of progress.
        show: number of examples to return.

    Returns:
        The first rows of the training data.
    """
    task, _, _ = _ready(recipe, run, say)
    say("the recipe is valid")
    return task.examples(show)


def _ready(
    recipe: Recipe, run: Path, say: Callable[[str], None]
) -> tuple[LanguageModelTask, Prepared, Initial | None]:
    refuse_early(recipe, run)
    for note in rate_notes(run, recipe):
        say(note)
    if recipe.train.tensorboard:
        metrics.require_tensorboard()
    resolve(recipe.train.device)
    limit_threads(recipe.train.threads)
    initial = initial_of(recipe, run)
    prepared = prepare(recipe.read_data, tokenizer_of(recipe, run, initial), say)
    for note in (*prepared.notes, *shortfalls(resolve(recipe.train.device))):
        say(note)
    _refuse_other_data(run, prepared)
    _refuse_other_weights(run, initial)
    task = LanguageModelTask(recipe, prepared, initial)
    for note in task.notes:
        say(note)
    say(describe(task.model_config, prepared))
    return task, prepared, initial


def describe(config: ModelConfig, prepared: Prepared) -> str:
    """Describe sizes of model and data in one line."""
    total, active = config.num_params(), config.num_active_params()
    tokens = sum(prepared.tokens_count["train"].values())
    return (
        f"{amount(total)} parameters, {amount(active)} activated per token; "
        f"{amount(tokens)} training tokens from {', '.join(prepared.domains_of('train'))}"
    )


def data_of(run: Path) -> dict[str, Any]:
    """Read the description of a run's training data."""
    path = run / DATA
    if not path.is_file():
        raise RunError(f"{run} has no {DATA}; it was not trained to begin with")
    result: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return result


def refuse_other_text(
    run: Path, before: str, now: str, way_on: str = "start afresh in another folder"
) -> None:
    """Refuse to use a run, or a composed model, with text other than its own.

    Args:
        run: the folder.
        before: digest of the text that it was made with.
        now: digest of the text that the sources now give.
        way_on: advice for using the new text.

    Raises:
        RunError: the digests differ; both are shown.
    """
    if before != now:
        raise RunError(
            f"the text has changed: {run} was trained on {before[:16]}…, the sources now give {now[:16]}…",
            way_on,
            "or bring the old text back (for installed text: the same Python and packages)",
        )


def on_new_text(run: Path) -> str:
    """Advise the user how to go on from a run whose text has changed."""
    init = shlex.quote(f"init={run}")
    return f"train on from it with the new text: expertise train RECIPE --set {init} --out ANOTHER_FOLDER"


def is_finished(run: Path, recipe: Recipe) -> bool:
    """Return True if a run has all the steps of its recipe, and was evaluated after the last."""
    if not folder.is_run(run):
        return False
    saved = checkpoint.latest(run)
    return saved is not None and saved.step == recipe.train.steps and loop.is_evaluated(run, saved.step)


def result(run: Path) -> dict[str, Any]:
    """Return a run's last evaluation: `run`, `step`, `bits_per_byte`, `parts_per_token`."""
    evaluations = [r for r in metrics.read_lines(run / "metrics.jsonl") if r["kind"] == "evaluation"]
    if not evaluations:
        raise RunError(f"{run} has not been evaluated yet")
    last = evaluations[-1]
    parts = last.get("parts_per_token", {"mean": 0.0, "layers": [], "domains": {}})
    return {
        "run": str(run),
        "step": last["step"],
        "bits_per_byte": last["bits_per_byte"],
        "parts_per_token": parts,
    }


def _refuse_other_data(run: Path, prepared: Prepared) -> None:
    if (run / DATA).is_file():
        refuse_other_text(run, data_of(run)["digest"], prepared.digest, on_new_text(run))
    path = run / TOKENIZER
    if path.is_file() and path.read_text("utf-8") != prepared.tokenizer.to_str():
        raise RunError(
            f"the tokenizer is not the one that {run} was trained with",
            f"bring the old one back (it is {path}), or start afresh with another --out",
        )


def _refuse_other_weights(run: Path, initial: Initial | None) -> None:
    """Refuse to begin a run again, before its first checkpoint, from other weights than it began with."""
    if initial is None or not (run / DATA).is_file():
        return
    before, now = data_of(run).get("init", {}).get("sha256"), initial.facts()["sha256"]
    if before != now:
        raise RunError(
            f"init has changed: {run} began with {str(before)[:16]}…, {initial.path} now has {now[:16]}…",
            "name the checkpoint that it began with, or start afresh with another --out",
        )


def _adopt_data(run: Path, prepared: Prepared, initial: Initial | None) -> None:
    """Record the training data of the run; refuse other text or another tokenizer than it began with."""
    path = run / DATA
    _refuse_other_data(run, prepared)
    # Written before the description: a run that has the description has the text, too. A run of an earlier
    # version gets it now, and one whose text was damaged gets it again.
    if not held_out.is_kept(run / HELD_OUT, prepared.digest):
        held_out.keep(prepared, run / HELD_OUT)
    if path.is_file():
        return
    facts = {"digest": prepared.digest, "domains": list(prepared.domains), "bytes": prepared.bytes}
    if initial is not None:
        facts["init"] = initial.facts()
    write_atomic(path, json.dumps(facts, indent=1) + "\n")
