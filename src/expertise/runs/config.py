"""What a recipe says about a training, whatever is trained. No torch here: see `registry.Registry.config`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from expertise.errors import RecipeError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
OnNonFinite = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, and how often to look and to save."""

    steps: Annotated[int, Ge(1)]
    """Optimizer steps."""
    batch_size: Annotated[int, Ge(1)]
    """Sequences (of policies: transitions) per step, all micro-batches together."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Micro-batches that a step is cut into: the same step to rounding (but for balance losses that count
    per batch), in less memory."""
    evaluate_every: Annotated[int, Ge(0)] = 0
    """Steps between evaluations; 0: only at the end."""
    save_every: Annotated[int, Ge(0)] = 0
    """Steps between checkpoints; 0: only at the end."""
    log_every: Annotated[int, Ge(1)] = 10
    """Steps between lines of metrics."""
    keep: Annotated[int, Ge(1)] = 2
    """How many of the latest checkpoints stay on disk."""
    keep_every: Annotated[int, Ge(0)] = 0
    """Checkpoints of every so many steps stay too; 0: none."""
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    """Of the weights and of the order of the data."""
    device: DeviceName = "auto"
    """"auto" takes CUDA where present, else the CPU."""
    threads: Annotated[int, Ge(0)] = 0
    """CPU threads; 0: as many as the machine has cores."""
    bfloat16: bool = False
    """Compute products in bfloat16 (autocast); weights stay in float32."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard."""
    on_non_finite: OnNonFinite = "stop"
    """A loss or gradient that is not finite: "stop", or "skip" the step: its batch is passed over."""
    skip_limit: Annotated[int, Ge(1)] = 10
    """So many skipped steps in a row stop the run after all."""

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise RecipeError(
                f"train.batch_size ({self.batch_size}) is not a multiple of "
                f"train.accumulation ({self.accumulation})"
            )


def may_change(key: str) -> bool:
    """Whether a run may go on with another value of this key of its recipe, dotted.

    Those are how long, how often to look and to save, where and in what pieces to compute, what to do with a
    step that fails. A recipe that must keep one of them nevertheless says so (`folder.Keeping`).
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
    """Lines that say what helps a run whose device has too little memory.

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
