"""The one training loop: steps, accumulation, clipping, evaluation, checkpoints, signals."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from expertise.errors import RunError, counted
from expertise.runs import checkpoint, divergence, folder
from expertise.runs.config import TrainConfig
from expertise.runs.device import memory_errors
from expertise.runs.divergence import Skips
from expertise.runs.metrics import MetricsLog, TensorBoardSink, read_lines, sum_of
from expertise.runs.optim import OptimizerConfig
from expertise.runs.progress import Progress, say
from expertise.runs.signals import Interrupted, Interrupts, Stopped
from expertise.runs.weights import named_now


@dataclasses.dataclass(frozen=True)
class Losses:
    """What one micro-batch gave."""

    total: Tensor
    """Scalar to descend."""
    reported: Mapping[str, Tensor]
    """Scalars for the metrics; `loss` is the one that is shown."""
    tables: Mapping[str, Tensor]
    """Rows of numbers for the metrics (loads), empty unless `detail` was asked for."""
    weights: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Table → what this micro-batch's counts within the step, a scalar; one that is left out counts 1."""


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
        """What follows a step that was not skipped; it may change nothing but the model's state."""

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Numbers on held-out data, for the metrics; they depend on the weights alone.

        `between` is to be called between batches: it raises when the evaluation is to be broken off.
        """

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """An evaluation in a few words."""

    def files(self) -> Mapping[str, str]:
        """Text files that belong into every checkpoint."""


@runtime_checkable
class Epochs(Protocol):
    """A task that goes through all of its data once, and then again."""

    def epochs(self, steps: int) -> float:
        """How often it has gone through its data after so many steps."""


def train(
    run: Path,
    task: Task,
    config: TrainConfig,
    optimizer_config: OptimizerConfig,
    memory_hints: Sequence[str] = (),
) -> None:
    """Train to the last step, going on from the newest whole checkpoint of the run if there is one.

    Args:
        run: the run's folder, held by this process.
        task: what is trained.
        config: steps, saving, evaluation.
        optimizer_config: AdamW and schedule.
        memory_hints: what helps where the device has too little memory, a line each.

    Raises:
        RunError: it was trained for more steps before.
        Stopped: a signal asked for it; everything is saved.
        DivergedError: a loss or a gradient is not finite.
        DeviceError, DiskError: no memory, no room.
    """
    optimizer = optimizer_config.build(task.model)
    first = restore(run, task.model, optimizer)
    folder.refuse_fewer_steps(run, first, config.steps)
    if first == config.steps and is_evaluated(run, first):
        say(
            f"{run} has all its {counted(first, 'step')} already: nothing is trained; "
            f"to train it longer: --set train.steps={2 * first}"
        )
        return
    log = MetricsLog(run, first, (TensorBoardSink(run),) if config.tensorboard else ())
    progress = Progress(config.steps, done=first, unit_per_step=task.units_per_step, unit=task.unit)
    try:
        with Interrupts() as interrupts, progress:
            state = _State(run, task, config, optimizer_config, optimizer, log, progress, interrupts, first)
            with memory_errors(memory_hints):
                if first and not is_evaluated(run, first):
                    state.look_and_save(first)  # a signal may have broken that evaluation off
                for step in range(first, config.steps):
                    state.step(step)
                    state.look_and_save(step + 1)
            progress.note(state.seen(config.steps))
    finally:
        log.close()


def restore(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a run's newest whole checkpoint into model and optimizer; the step it was saved at, or 0.

    Raises:
        RunError: it is whole, but not of this model.
    """
    saved = checkpoint.latest(run, set_aside=True)
    if saved is None:
        return 0
    try:
        model.load_state_dict(named_now(model, saved.tensors("model")))
        checkpoint.restore_optimizer(model, optimizer, named_now(model, saved.tensors("optimizer")))
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"{saved.path} does not fit the model of the recipe",
            f"it was written by expertise {saved.version}: go on with that version",
        ) from error
    checkpoint.restore_random_states(saved.tensors("random"))
    return saved.step


def is_evaluated(run: Path, step: int) -> bool:
    """Whether a run's metrics hold an evaluation after this step."""
    lines = read_lines(run / "metrics.jsonl")
    return any(line["kind"] == "evaluation" and line["step"] == step for line in lines)


@dataclasses.dataclass
class _State:
    run: Path
    task: Task
    config: TrainConfig
    optimizer_config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    log: MetricsLog
    progress: Progress
    interrupts: Interrupts
    first: int

    def __post_init__(self) -> None:
        self._clock = time.monotonic()
        self._since = 0
        self._skips = Skips(read_lines(self.run / "metrics.jsonl"), self.first)
        self._parameters = list(self.task.model.parameters())
        self.saved = self.first

    def step(self, step: int) -> None:
        """One optimizer step (counted from 0) and its line of metrics."""
        config, done = self.config, step + 1
        last = done == config.steps
        due = done % config.log_every == 0 or last
        rate = self.optimizer_config.rate(step, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if not self.task.model.training:  # walking through the modules costs a small model 1 % of its step
            self.task.model.train()
        micro = [self._backward(step, index, due) for index in range(config.accumulation)]
        reported = {
            key: float(sum(losses.reported[key] for losses in micro)) / len(micro)
            for key in micro[0].reported
        }
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        total_norm = nn.utils.get_total_norm(gradients)
        norm = float(total_norm)
        bad = divergence.culprit(reported, norm, self.task.model)
        if bad:
            self._skip(done, bad)
        else:
            self._update(total_norm)
        self.optimizer.zero_grad(set_to_none=True)
        if not bad:
            self.task.after_step()
        self._since += 1
        if due or self._due(done, config.evaluate_every):
            self._refuse_spoilt(done)
        if due:
            if not bad:
                self._write(done, reported, step_tables(micro), rate, norm)
            self._write_rate(done)
        self.progress.update(done, "  ".join([f"loss {reported['loss']:.3f}", *self._epochs(done)]))

    def look_and_save(self, done: int) -> None:
        """Whatever is due after a step: an evaluation, a checkpoint, an end because a signal came."""
        try:
            if self._due(done, self.config.evaluate_every):
                self._evaluate(done)
            if self.saved != done and self._due(done, self.config.save_every):
                self.save(done)
            if done < self.config.steps:
                self.interrupts.check()
        except Interrupted:
            # An evaluation that was broken off is made good when the run goes on.
            if self.saved != done:
                self.save(done)
            assert self.interrupts.signal_number is not None
            raise Stopped(self.interrupts.signal_number, done) from None

    def seen(self, done: int) -> str:
        """How much was trained on after so many steps."""
        units = f"{done * self.task.units_per_step:,} {self.task.unit}"
        return ", ".join([f"step {done}: trained on {units}", *self._epochs(done)])

    def _epochs(self, done: int) -> list[str]:
        if not isinstance(self.task, Epochs):
            return []
        epochs = self.task.epochs(done)
        return [f"{epochs:,.2f} epochs" if epochs < 10 else f"{epochs:,.0f} epochs"]

    def _due(self, done: int, every: int) -> bool:
        return done == self.config.steps or bool(every and done % every == 0)

    def save(self, step: int) -> None:
        """Write a checkpoint."""
        self._refuse_spoilt(step)
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
        number = self.config.accumulation
        (losses.total / number if number > 1 else losses.total).backward()  # type: ignore[no-untyped-call]
        reported = {key: value.detach() for key, value in losses.reported.items()}
        tables = {key: table.detach() for key, table in losses.tables.items()}
        return Losses(losses.total.detach(), reported, tables, losses.weights)

    def _update(self, total_norm: Tensor) -> None:
        """Clip and step."""
        if limit := self.optimizer_config.clip:
            nn.utils.clip_grads_with_norm_(self._parameters, limit, total_norm)
        self.optimizer.step()
        self._skips.end_row()

    def _skip(self, step: int, bad: str) -> None:
        """Drop a step's update, or stop: weights and the optimizer's state stay as they are."""
        config = self.config
        if config.on_non_finite == "stop":
            raise divergence.diverged(self.run, step, bad, may_skip=True)
        self._skips.add()
        units = {self.task.unit: step * self.task.units_per_step}
        self.log.metric(
            kind="skipped", step=step, **units, skipped=True, reason=bad, skipped_total=self._skips.total
        )
        if self._skips.in_a_row >= config.skip_limit:
            raise divergence.diverged(self.run, step, bad, skipped=self._skips.in_a_row)
        self.progress.note(f"step {step}: {bad} is not finite; skipped ({self._skips.total} so far)")

    def _refuse_spoilt(self, step: int) -> None:
        """The step just taken may have spoilt the weights: no line and no checkpoint may come of that."""
        if not divergence.all_finite(self._parameters):
            raise divergence.diverged(self.run, step, "a new weight")

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

    def _write_rate(self, step: int) -> None:
        now = time.monotonic()
        seconds, self._clock = max(1e-9, now - self._clock), now  # a coarse clock may stand still for a step
        units, self._since = self._since * self.task.units_per_step, 0
        self.log.timing(
            step=step,
            seconds=round(seconds, 4),
            **{f"{self.task.unit}_per_second": round(units / seconds, 1)},
        )

    def _evaluate(self, step: int) -> None:
        started = time.monotonic()
        self.task.model.eval()
        self.interrupts.check()
        evaluation = self.task.evaluate(self.interrupts.check)
        if not math.isfinite(sum_of(evaluation)):
            raise divergence.diverged(self.run, step, "the evaluation")
        self.log.metric(
            kind="evaluation", step=step, **{self.task.unit: step * self.task.units_per_step}, **evaluation
        )
        self.progress.note(f"step {step}: {self.task.headline(evaluation)}")
        # The time of an evaluation is its own: it must not spoil the next rate.
        self.log.timing(step=step, evaluation_seconds=round(time.monotonic() - started, 4))
        self._clock = time.monotonic()


def step_tables(micro: Sequence[Losses]) -> dict[str, Tensor]:
    """The tables of a whole step: the mean over its micro-batches, each with its weight."""
    if len(micro) == 1:
        return dict(micro[0].tables)
    tables = {}
    for name in micro[0].tables:
        each = torch.stack([losses.tables[name] for losses in micro]).double()
        weights = each.new_tensor([float(losses.weights.get(name, 1.0)) for losses in micro])
        total = weights.sum()
        tables[name] = (weights @ each) / total.where(total > 0, 1.0)
    return tables


def _rounded(table: Tensor) -> list[float]:
    """A table's numbers with the four digits that a picture can show."""
    return [float(f"{float(value):.4g}") for value in table]
