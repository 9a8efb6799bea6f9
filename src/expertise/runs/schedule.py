"""Warnings about learning rates that jump if a run goes on with another length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertise.runs import checkpoint, folder

_ALIKE = 0.01
"""Two rates that differ by at most this share of the greater one count as equal."""


def rate_notes(run: Path, recipe: Any) -> list[str]:
    """A note that the learning rate jumps where a run goes on, and how to keep it; empty if it does not jump.

    Args:
        run: the run's folder, which still holds the recipe that it was trained with so far.
        recipe: the recipe to go on with; `recipe.train` and `recipe.optimizer` are read.
    """
    if not folder.is_run(run):
        return []
    before = folder.read_recipe(run, type(recipe))
    old, new = before.optimizer.whole(), recipe.optimizer.whole()
    old_steps = old.schedule_steps or before.train.steps
    new_steps = new.schedule_steps or recipe.train.steps
    saved = checkpoint.latest(run) if old_steps != new_steps else None
    if saved is None or saved.step >= recipe.train.steps:
        return []
    was, now = old.rate(saved.step, old_steps), new.rate(saved.step, new_steps)
    if abs(now - was) <= _ALIKE * max(was, now):
        return []
    text = (
        f"the learning rate jumps from {was:.3g} to {now:.3g} after step {saved.step}, because "
        f'optimizer.schedule = "{new.schedule}" is now laid out over {new_steps:,} steps, not {old_steps:,}'
    )
    # A rate of 0 is not worth keeping, because nothing would be learnt.
    return [f"{text}; to keep it: --set optimizer.schedule_steps={old_steps}" if was else text]
