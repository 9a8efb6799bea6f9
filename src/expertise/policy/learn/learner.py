"""Start or resume the run of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expertise.errors import RunError
from expertise.policy.learn.common import LearnRecipe, Prepared
from expertise.runs import checkpoint, folder, loop, metrics
from expertise.runs.config import may_change, memory_hints
from expertise.runs.device import limit_threads, resolve
from expertise.runs.files import write_atomic
from expertise.runs.schedule import rate_notes

INPUTS = "inputs.json"
"""File of the digests of a run's inputs: data and models."""


def learn(recipe: LearnRecipe, run: str | Path, say: Callable[[str], None]) -> None:
    """Learn what a recipe says, or go on with that where it was stopped.

    Nothing is written before the recipe, its data and its models have been checked. The result is the run
    itself, which `load` or `load_critics` opens; a skill is also added to its library.

    Args:
        recipe: the recipe.
        run: the run's folder.
        say: called with each line of progress.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    run = Path(run)
    folder.refuse_if_held(run)
    folder.require_free_or_run(run)
    if folder.is_run(run):
        folder.refuse_changes(run, recipe, _may_change)
        for note in rate_notes(run, recipe):
            say(note)
    if recipe.train.tensorboard:
        metrics.require_tensorboard()
    resolve(recipe.train.device)
    limit_threads(recipe.train.threads)
    prepared = recipe.prepare()
    _refuse_other_inputs(run, prepared)
    for line in prepared.note.splitlines():
        say(line)
    for line in prepared.warnings:
        say(f"warning: {line}")
    with folder.held(run):
        _refuse_other_inputs(run, prepared)
        folder.adopt_recipe(run, recipe, _may_change)
        if not (run / INPUTS).is_file():
            write_atomic(run / INPUTS, json.dumps(prepared.facts, indent=1) + "\n")
        _train(recipe, run, prepared)
        prepared.finish()
        for line in prepared.doubts():
            say(f"warning: {line}")


def result(run: Path) -> dict[str, Any]:
    """Return the result of a run: `run`, `step`, and its last `evaluation`, empty if nothing was trained.

    Raises:
        RunError: its record is damaged.
    """
    lines = [line for line in metrics.read_lines(run / "metrics.jsonl") if line["kind"] == "evaluation"]
    last = lines[-1] if lines else {"step": 0}
    numbers = {key: value for key, value in last.items() if key not in ("kind", "step")}
    return {"run": str(run), "step": last["step"], "evaluation": numbers}


def _train(recipe: LearnRecipe, run: Path, prepared: Prepared) -> None:
    model = prepared.task.model
    if any(parameter.requires_grad for parameter in model.parameters()):
        loop.train(run, prepared.task, recipe.train, recipe.optimizer.whole(), memory_hints(recipe.train))
    elif checkpoint.latest(run) is None:
        # The weights were given: there is nothing to train.
        checkpoint.save(run, 0, {"model": model.state_dict()}, prepared.task.files(), keep=1)


def _may_change(key: str) -> bool:
    """Return True if a run may go on with another value of this key.

    Paths of inputs may change: `_refuse_other_inputs` compares their contents.
    """
    return may_change(key) or key in ("data", "base", "critics")


def _refuse_other_inputs(run: Path, prepared: Prepared) -> None:
    path = run / INPUTS
    if not path.is_file():
        return
    before = json.loads(path.read_text("utf-8"))
    for name, digest in prepared.facts.items():
        if before.get(name) != digest:
            raise RunError(
                f"{name} of {run} changed since it was made: {str(before.get(name))[:16]}…, "
                f"now {str(digest)[:16]}…",
                "bring the old one back, or choose another folder",
            )
