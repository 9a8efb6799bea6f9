"""Losses and gradients that are not finite: error messages and skipped steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expertise.errors import DivergedError
from expertise.runs import checkpoint, folder
from expertise.runs import recipe as recipes


def culprit(reported: Mapping[str, float], norm: float, model: nn.Module) -> str:
    """Name the part of a step that is not finite, in words; empty if everything is finite.

    Args:
        reported: the parts of the loss.
        norm: norm of the whole gradient, before it is clipped.
        model: the model, whose gradients show the first parameter with a bad one.
    """
    for name, value in reported.items():
        if not math.isfinite(value):
            return "the loss" if name == "loss" else f"{name} (a part of the loss)"
    if math.isfinite(norm):
        return ""
    bad = (n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all()))
    first = next(bad, None)
    # The norm can overflow although every gradient is finite.
    return f"the gradient of {first}" if first else "the norm of the gradient"


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if every number in the tensors is finite."""
    # One norm of all tensors is ten times as fast as checking each number. If it is not finite, squares may
    # have overflowed, so each tensor is then checked.
    norm = nn.utils.get_total_norm([t.detach() for t in tensors if t.is_floating_point()])
    rest = [t for t in tensors if not t.is_floating_point()] if bool(norm.isfinite()) else tensors
    return all(bool(t.isfinite().all()) for t in rest)


def diverged(run: Path, step: int, what: str, *, may_skip: bool = False, skipped: int = 0) -> DivergedError:
    """The error that ends a run; it names the step, the part, the last good checkpoint and possible remedies.

    Args:
        run: the run's folder.
        step: steps done, this one included.
        what: name of the part that is not finite, from `culprit` or another caller.
        may_skip: also suggest to skip such steps.
        skipped: number of steps skipped in a row, this one included.
    """
    saved = checkpoint.latest(run)
    good = f"the last good checkpoint is {saved.path}" if saved else "no checkpoint was saved before"
    hints = [good, f"try, in another folder, {' or '.join(_remedies(run))}"]
    if may_skip:
        hints.append("or go on with this run and pass such steps over: --set train.on_non_finite=skip")
    after = f", and {skipped} steps in a row were skipped" if skipped else ""
    return DivergedError(f"step {step}: {what} is not finite{after}", *hints)


def _remedies(run: Path) -> list[str]:
    """Changes that may keep a run finite, restricted to keys that its recipe has."""
    known = {"learning_rate": 1.0, "warmup": 0, "clip": 1.0}
    if (run / folder.RECIPE).is_file():
        values = recipes.parse((run / folder.RECIPE).read_text("utf-8"), str(run / folder.RECIPE))
        known = values.get("optimizer", {})
    remedies = ["a lower optimizer.learning_rate"]
    remedies += ["a longer optimizer.warmup"] if "warmup" in known else []
    if "clip" in known:
        # A clip of 0 means no clipping, so it cannot be lowered.
        remedies.append("a lower optimizer.clip" if known["clip"] else "optimizer.clip = 1.0")
    return remedies


class Skips:
    """Counts the steps whose update was dropped. Each writes a line of metrics, from which counts are
    restored.

    Args:
        lines: the run's metrics up to `step`.
        step: where the run goes on.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]], step: int) -> None:
        steps = {line["step"] for line in lines if line["kind"] == "skipped"}
        self.total = len(steps)
        self.in_a_row = 0
        while step - self.in_a_row in steps:
            self.in_a_row += 1

    def add(self) -> None:
        """Count one more dropped step."""
        self.total += 1
        self.in_a_row += 1

    def end_row(self) -> None:
        """Reset the count of dropped steps in a row, because a step was taken."""
        self.in_a_row = 0
