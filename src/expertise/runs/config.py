"""Configuration of a training, whatever is trained. No torch here: see `registry.Registry.config`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from expertise.errors import RecipeError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
OnNonFinite = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch size and device of a training; intervals of evaluations and checkpoints."""

    steps: Annotated[int, Ge(1)]
    """Number of optimizer steps."""
    batch_size: Annotated[int, Ge(1)]
    """Sequences per step, all micro-batches together; for policies, transitions per step."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Number of micro-batches per step. It changes a step only by rounding (and by balance losses that count
    per batch), and saves memory."""
    evaluate_every: Annotated[int, Ge(0)] = 0
    """Steps between evaluations; 0: only at the end."""
    save_every: Annotated[int, Ge(0)] = 0
    """Steps between checkpoints; 0: only at the end."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between lines of metrics."""
    keep: Annotated[int, Ge(1)] = 2
    """Number of latest checkpoints to keep on disk."""
    keep_every: Annotated[int, Ge(0)] = 0
    """Also keep every checkpoint whose step is a multiple of this; 0: none."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Seed of the weights and of the order of the data."""
    device: DeviceName = "auto"
    """Device to train on; "auto" is CUDA where present, else the CPU."""
    threads: Annotated[int, Ge(0)] = 0
    """CPU threads; 0: as many as the machine has cores."""
    bfloat16: bool = False
    """Autocast products to bfloat16; weights stay in float32."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard."""
    on_non_finite: OnNonFinite = "stop"
    """Reaction to a loss or gradient that is not finite: "stop", or "skip" the update of that step."""
    skip_limit: Annotated[int, Ge(1)] = 10
    """Stop the run after this many skipped steps in a row."""

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise RecipeError(
                f"train.batch_size ({self.batch_size}) is not a multiple of "
                f"train.accumulation ({self.accumulation})"
            )


def may_change(key: str) -> bool:
    """True if a run may go on with another value of this key, given as a dotted name.

    These keys set the length, the intervals of evaluation and saving, the device, the micro-batches and the
    reaction to a failed step. A recipe that must keep one of them implements `folder.Keeping`.
    """
    return key in {
        "train.steps",
        "train.accumulation",
        "train.evaluate_every",
        "train.save_every",
        "train.log_every",
        "train.keep",
        "train.keep_every",
        "train.device",
        "train.threads",
        "train.tensorboard",
        "train.on_non_finite",
        "train.skip_limit",
        "optimizer.schedule_steps",
    }


def memory_hints(
    train: TrainConfig, *smaller: str, accumulation_stays: bool = False, option: str = "--out"
) -> list[str]:
    """Hints for a run whose device has too little memory, one line each.

    Args:
        train: of the run.
        smaller: further keys whose lower values need less memory; like the batch size they need a new run.
        accumulation_stays: the run's recipe keeps `train.accumulation`, too.
        option: of the command, the one that names another folder.
    """
    sizes = range(train.accumulation + 1, train.batch_size + 1)
    more = next((number for number in sizes if train.batch_size % number == 0), None)
    lower = [f"lower {key}" for key in ("train.batch_size", *smaller)]
    if more and not accumulation_stays:
        return [
            f"cut each step into more pieces, this run goes on: --set train.accumulation={more}",
            f"or start afresh with another {option}, and {' or '.join(lower)}",
        ]
    cut = [f"set train.accumulation={more}"] if more else []
    return [f"start afresh with another {option}, and {' or '.join([*cut, *lower])}"]
