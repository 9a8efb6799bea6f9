"""The one training loop: steps, accumulation, clipping, evaluation, checkpoints, signals."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from expertise.errors import DivergedError, ExpertiseError, RecipeError
from expertise.runs import checkpoint
from expertise.runs.device import DeviceName, memory_errors
from expertise.runs.metrics import MetricsLog, TensorBoardSink, sum_of
from expertise.runs.optim import OptimizerConfig
from expertise.runs.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how much at once, and how often to look and to save."""

    steps: Annotated[int, Ge(1)]
    """Optimizer steps."""
    batch_size: Annotated[int, Ge(1)]
    """Sequences per step, all micro-batches together."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Micro-batches that a step is cut into: the same step to rounding, in less memory."""
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

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulation:
            raise RecipeError(
                f"train.batch_size ({self.batch_size}) is not a multiple of "
                f"train.accumulation ({self.accumulation})"
            )


@dataclasses.dataclass(frozen=True)
class Losses:
    """What one micro-batch gave."""

    total: Tensor
    """Scalar to descend."""
    reported: Mapping[str, Tensor]
    """Scalars for the metrics; `loss` is the one that is shown."""
    tables: Mapping[str, Tensor]
    """Rows of numbers for the metrics (loads), empty unless `detail` was asked for."""


@runtime_checkable
class Task(Protocol):
    """What the loop trains."""

    unit: str
    """What is counted, in the plural ("tokens")."""
    units_per_step: int

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Losses of micro-batch `micro` of `step`; they depend on the weights, step and seed alone."""

    def after_step(self) -> None:
        """What follows an optimizer step; it may change nothing but the model's state."""

    def evaluate(self) -> dict[str, Any]:
        """Numbers on held-out data, for the metrics."""

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """An evaluation in a few words."""

    def files(self) -> Mapping[str, str]:
        """Text files that belong into every checkpoint."""


class Stopped(ExpertiseError):  # noqa: N818 - it is no error
    """Training stopped by a signal, after saving."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; saved", "run the same command to go on")
        self.signal_number = signal_number


class Interrupts:
    """Notes SIGINT and SIGTERM so that a step can end; a second SIGINT leaves at once."""

    def __enter__(self) -> Interrupts:
        self.signal_number: int | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number


def train(run: Path, task: Task, config: TrainConfig, optimizer_config: OptimizerConfig) -> None:
    """Train to the last step, going on from the newest whole checkpoint of the run if there is one.

    Args:
        run: the run's folder, held by this process.
        task: what is trained.
        config: steps, saving, evaluation.
        optimizer_config: AdamW and schedule.

    Raises:
        Stopped: a signal asked for it; everything is saved.
        DivergedError: a loss or a gradient is not finite.
        DeviceError, DiskError: no memory, no room.
    """
    optimizer = optimizer_config.build(task.model)
    first = restore(run, task.model, optimizer)
    if first >= config.steps:
        return
    log = MetricsLog(run, first, (TensorBoardSink(run),) if config.tensorboard else ())
    progress = Progress(config.steps, done=first, unit_per_step=task.units_per_step, unit=task.unit)
    state = _State(run, task, config, optimizer_config, optimizer, log, progress)
    try:
        with Interrupts() as interrupts, progress:
            for step in range(first, config.steps):
                with memory_errors("train.batch_size (or raise train.accumulation)", "model.context"):
                    state.step(step)
                if interrupts.signal_number is not None and step + 1 < config.steps:
                    if state.saved != step + 1:
                        state.save(step + 1)
                    raise Stopped(interrupts.signal_number, step + 1)
    finally:
        log.close()


def restore(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a run's newest whole checkpoint into model and optimizer; the step it was saved at, or 0."""
    saved = checkpoint.latest(run, set_aside=True)
    if saved is None:
        return 0
    model.load_state_dict(saved.tensors("model"))
    checkpoint.restore_optimizer(model, optimizer, saved.tensors("optimizer"))
    checkpoint.restore_random_states(saved.tensors("random"))
    return saved.step


@dataclasses.dataclass
class _State:
    run: Path
    task: Task
    config: TrainConfig
    optimizer_config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    log: MetricsLog
    progress: Progress

    def __post_init__(self) -> None:
        self._clock = time.monotonic()
        self._since = 0
        self.saved = -1

    def step(self, step: int) -> None:
        """One optimizer step (counted from 0) and whatever is due after it."""
        config, done = self.config, step + 1
        last = done == config.steps
        due = done % config.log_every == 0 or last
        rate = self.optimizer_config.rate(step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.task.model.train()
        micro = [self._backward(step, index, due) for index in range(config.accumulation)]
        reported = {
            key: float(sum(losses.reported[key] for losses in micro)) / len(micro)
            for key in micro[0].reported
        }
        norm = self._clip()
        self._refuse_non_finite(done, reported, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.task.after_step()
        self._since += 1
        if due or self._due(done, config.save_every) or self._due(done, config.evaluate_every):
            # The step just taken may have spoilt the weights.
            spoilt = not all(bool(p.isfinite().all()) for p in self.task.model.parameters())
            self._refuse_non_finite(done, {"new weight": math.nan} if spoilt else {}, norm)
        if due:
            tables = {k: (sum(m.tables[k] for m in micro) / len(micro)) for k in micro[0].tables}
            self._write(done, reported, tables, rate, norm)
        self.progress.update(done, f"loss {reported['loss']:.3f}")
        if self._due(done, config.evaluate_every):
            self._evaluate(done)
        if self._due(done, config.save_every):
            self.save(done)

    def _due(self, done: int, every: int) -> bool:
        return done == self.config.steps or bool(every and done % every == 0)

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        tensors = {
            "model": self.task.model.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.task.model, self.optimizer),
            "random": checkpoint.random_states(),
        }
        keep, keep_every = self.config.keep, self.config.keep_every
        checkpoint.save(self.run, step, tensors, self.task.files(), keep=keep, keep_every=keep_every)
        self.saved = step

    def _backward(self, step: int, index: int, detail: bool) -> Losses:
        losses = self.task.losses(step, index, detail)
        (losses.total / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
        reported = {key: value.detach() for key, value in losses.reported.items()}
        return Losses(losses.total.detach(), reported, {k: v.detach() for k, v in losses.tables.items()})

    def _clip(self) -> float:
        limit = self.optimizer_config.clip or math.inf
        return float(nn.utils.clip_grad_norm_(self.task.model.parameters(), limit))

    def _refuse_non_finite(self, step: int, reported: Mapping[str, float], norm: float) -> None:
        bad = [name for name, value in reported.items() if not math.isfinite(value)]
        if not bad and math.isfinite(norm):
            return
        saved = checkpoint.latest(self.run)
        good = f"the last good checkpoint is {saved.path}" if saved else "no checkpoint was saved before"
        raise DivergedError(
            f"step {step}: {'the ' + bad[0] if bad else 'the gradient'} is not finite",
            good,
            "try a lower optimizer.learning_rate, a longer optimizer.warmup or a lower optimizer.clip",
        )

    def _write(
        self, step: int, reported: Mapping[str, float], tables: Mapping[str, Any], rate: float, norm: float
    ) -> None:
        self.log.metric(
            kind="train",
            step=step,
            **{self.task.unit: step * self.task.units_per_step},
            **reported,
            learning_rate=rate,
            gradient_norm=norm,
            **{name: _rounded(table) for name, table in tables.items()},
        )
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        units, self._since = self._since * self.task.units_per_step, 0
        self.log.timing(
            step=step,
            seconds=round(seconds, 4),
            **{f"{self.task.unit}_per_second": round(units / seconds, 1)},
        )

    def _evaluate(self, step: int) -> None:
        started = time.monotonic()
        self.task.model.eval()
        evaluation = self.task.evaluate()
        self._refuse_non_finite(step, {"evaluation": sum_of(evaluation)}, 0.0)
        self.log.metric(
            kind="evaluation", step=step, **{self.task.unit: step * self.task.units_per_step}, **evaluation
        )
        self.progress.note(f"step {step}: {self.task.headline(evaluation)}")
        # The time of an evaluation is its own: it must not spoil the next rate.
        self.log.timing(step=step, evaluation_seconds=round(time.monotonic() - started, 4))
        self._clock = time.monotonic()


def _rounded(table: Tensor) -> list[float]:
    """A table's numbers with the four digits that a picture can show."""
    return [float(f"{float(value):.4g}") for value in table]
