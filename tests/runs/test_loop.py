"""The loop over a task that knows no language: accumulation, saving, stopping, going on, divergence."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import DiskError, DivergedError, RecipeError, RunError
from expertise.runs import checkpoint, loop
from expertise.runs.loop import Interrupts, Stopped, TrainConfig
from expertise.runs.metrics import MetricsLog, read_lines
from expertise.runs.optim import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=0.05, schedule="constant", warmup=3)
CONFIG = TrainConfig(steps=8, batch_size=4, accumulation=2, log_every=2, save_every=3, evaluate_every=3)


def content(run: Path) -> dict[str, bytes]:
    """Everything that recipe and seed determine: metrics, and the newest checkpoint but its versions."""
    found = checkpoint.latest(run)
    assert found is not None
    names = ("model.safetensors", "optimizer.safetensors", "random.safetensors")
    return {name: (found.path / name).read_bytes() for name in names} | {
        "metrics": (run / "metrics.jsonl").read_bytes()
    }


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def undisturbed(tmp_path: Path, toy: Any) -> dict[str, bytes]:
    run = tmp_path / "undisturbed"
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert steps(run) == ["step-6", "step-8"]
    return content(run)


def test_lines_of_metrics_and_times(tmp_path: Path, toy: Any) -> None:
    loop.train(tmp_path, toy(), CONFIG, OPTIMIZER)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("evaluation", 3),
        ("train", 4),
        ("train", 6),
        ("evaluation", 6),
        ("train", 8),
        ("evaluation", 8),
    ]
    assert set(lines[0]) == {"kind", "step", "rows", "loss", "learning_rate", "gradient_norm", "table"}
    assert lines[0]["rows"] == 8
    assert lines[0]["table"] == [1.0, 1.0]
    assert [line["learning_rate"] for line in lines if "loss" in line] == pytest.approx(
        [0.05 * 2 / 3, 0.05, 0.05, 0.05]
    )
    assert all("time" in line for line in read_lines(tmp_path / "timing.jsonl"))


def test_a_task_is_told_of_each_step_before_anything_is_saved(tmp_path: Path, toy: Any) -> None:
    task = toy()
    weights = [parameter.detach().clone() for parameter in task.model.parameters()]
    seen: list[Any] = []

    def moved() -> None:
        now = [parameter.detach().clone() for parameter in task.model.parameters()]
        assert any(not torch.equal(a, b) for a, b in zip(now, weights, strict=True)), "the step was taken"
        assert all(parameter.grad is None for parameter in task.model.parameters())
        seen.append(steps(tmp_path) if (tmp_path / "checkpoints").exists() else [])
        weights[:] = now

    task.after_step = moved
    loop.train(tmp_path, task, CONFIG, OPTIMIZER)
    assert seen == [
        [],
        [],
        [],
        ["step-3"],
        ["step-3"],
        ["step-3"],
        ["step-3", "step-6"],
        ["step-3", "step-6"],
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 2, 4, 5])
def test_a_signal_saves_and_going_on_is_exact(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], number: signal.Signals, at: int
) -> None:
    run, task = tmp_path / "run", toy()
    task.before_losses = lambda step, micro: (
        os.kill(os.getpid(), number) if (step, micro) == (at, 0) else None
    )
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step {at + 1}; saved") as caught:
        loop.train(run, task, CONFIG, OPTIMIZER)
    assert caught.value.signal_number == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    saved = checkpoint.latest(run)
    assert saved is not None
    assert saved.step == at + 1
    torch.manual_seed(99)  # another process starts with another random state
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed


def test_a_signal_in_the_last_step_lets_it_finish(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes]
) -> None:
    task = toy()
    task.before_losses = lambda step, micro: os.kill(os.getpid(), signal.SIGTERM) if step == 7 else None
    loop.train(tmp_path / "run", task, CONFIG, OPTIMIZER)
    assert content(tmp_path / "run") == undisturbed


def test_a_second_ctrl_c_leaves_at_once() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal_number == signal.SIGTERM
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_what_was_written_after_the_checkpoint_is_done_again(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], at: int
) -> None:
    """A kill leaves lines of metrics behind that are newer than the newest checkpoint, the last one cut."""
    run, task = tmp_path / "run", toy()

    def die(step: int, micro: int) -> None:
        if (step, micro) == (at, 1):
            raise RuntimeError("killed")

    task.before_losses = die
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(run, task, CONFIG, OPTIMIZER)
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind":"train","step":7,"loss":1e9}\n{"kind":"tra')
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed


def test_stopping_by_steps_and_going_on_is_exact(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes]
) -> None:
    run = tmp_path / "run"
    # The shorter run ends where the longer one evaluates, saves and writes a line as well.
    loop.train(run, toy(), dataclasses.replace(CONFIG, steps=6), OPTIMIZER)
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed
    before = (run / "timing.jsonl").read_bytes()
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed, "a finished run is left as it is"
    assert (run / "timing.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors"])
def test_damage_sets_aside_and_goes_on_from_the_one_before(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    path = run / "checkpoints" / "step-8" / name
    path.write_bytes(path.read_bytes()[:-3])
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert f"{name} is not what was written" in capsys.readouterr().err
    assert content(run) == undisturbed
    assert steps(run) == ["step-6", "step-8", "step-8.damaged"]


def test_accumulation_is_the_mean_over_micro_batches(tmp_path: Path, toy: Any) -> None:
    task = toy()
    by_hand = toy().model
    torch.manual_seed(5)
    losses = []
    for _ in range(2):
        x = torch.randn(2, 3)
        losses.append((by_hand(x) - x.sum(-1, keepdim=True)).square().mean())
    torch.stack(losses).mean().backward()
    norm = torch.stack([p.grad.norm() for p in by_hand.parameters()]).norm()
    torch.manual_seed(5)
    config = TrainConfig(steps=1, batch_size=4, accumulation=2)
    loop.train(tmp_path, task, config, dataclasses.replace(OPTIMIZER, clip=0.0))
    line = read_lines(tmp_path / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_clipping_bounds_the_gradient(tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    step = torch.optim.AdamW.step

    def spy(self: Any, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for clip in (1e-3, 0.0):
        task, run = toy(), tmp_path / str(clip)
        loop.train(run, task, TrainConfig(steps=1, batch_size=1), dataclasses.replace(OPTIMIZER, clip=clip))
        norm = read_lines(run / "metrics.jsonl")[0]["gradient_norm"]
        assert norm > 1e-2, "the metrics show the norm before clipping"
        assert seen.pop() == pytest.approx(min(norm, clip or norm), rel=1e-3)


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
@pytest.mark.parametrize("at", [1, 4])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tmp_path: Path, toy: Any, factor: float, at: int
) -> None:
    task = toy()
    weights: list[torch.Tensor] = []

    def spoil(step: int, micro: int) -> None:
        if (step, micro) == (at, 1):
            task.factor = factor
            weights.append(task.model[0].weight.detach().clone())

    task.before_losses = spoil
    with pytest.raises(DivergedError, match=f"^step {at + 1}: the loss is not finite$") as caught:
        loop.train(tmp_path, task, CONFIG, OPTIMIZER)
    good, what_to_try = caught.value.hints
    assert good == (
        f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-3'}"
        if at == 4
        else "no checkpoint was saved before"
    )
    assert "optimizer.learning_rate" in what_to_try
    assert torch.equal(task.model[0].weight, weights[0])


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path, toy: Any) -> None:
    task = toy()
    task.model[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DivergedError, match=r"^step 1: the gradient is not finite$"):
        loop.train(tmp_path, task, CONFIG, OPTIMIZER)


def test_weights_that_are_not_finite_are_never_saved_as_good(tmp_path: Path, toy: Any) -> None:
    config = TrainConfig(steps=3, batch_size=4, save_every=1, evaluate_every=1)
    huge = OptimizerConfig(learning_rate=3e38, weight_decay=2.0, schedule="constant")
    with pytest.raises(DivergedError):
        loop.train(tmp_path, toy(), config, huge)
    saved = checkpoint.latest(tmp_path)
    if saved is not None:
        assert all(value.isfinite().all() for value in saved.tensors("model").values())
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text(), "NaN is not JSON"


def test_a_full_disk_while_saving_leaves_a_run_that_goes_on(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    run, calls = tmp_path / "run", []
    real = checkpoint.atomic_folder

    def full(path: Path) -> Any:
        calls.append(path.name)
        if len(calls) == 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_folder", full)
        with pytest.raises(DiskError, match=r"cannot save .*step-6: it needs 0\.0 MB and "):
            loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert steps(run) == ["step-3"]
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed


def test_a_run_that_was_just_saved_is_not_saved_twice(
    tmp_path: Path, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing a whole checkpoint by an equal one opens a moment in which a kill loses it."""
    saved: list[int] = []
    monkeypatch.setattr(checkpoint, "save", lambda run, step, *_, **__: saved.append(step))
    task = toy()
    task.before_losses = lambda step, micro: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None
    with pytest.raises(Stopped):
        loop.train(tmp_path, task, CONFIG, OPTIMIZER)
    assert saved == [3]


def test_a_damaged_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"a":1}\n{"a"\n{"a":2}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        read_lines(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"a":1}\n\n{"a":2}\n{"a"')
    assert read_lines(tmp_path / "m.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_times_stay_readable_after_a_line_was_cut(tmp_path: Path) -> None:
    (tmp_path / "timing.jsonl").write_text('{"step":1}\n{"st')
    log = MetricsLog(tmp_path, 0)
    log.timing(step=2)
    log.close()
    assert [line["step"] for line in read_lines(tmp_path / "timing.jsonl")] == [1, 2]


def test_sinks_get_what_the_file_gets(tmp_path: Path) -> None:
    class Sink:
        got: list[dict[str, Any]] = []  # noqa: RUF012
        closed = False

        def write(self, record: dict[str, Any]) -> None:
            self.got.append(record)

        def close(self) -> None:
            self.closed = True

    sink = Sink()
    log = MetricsLog(tmp_path, 0, (sink,))
    log.metric(kind="train", step=1, loss=0.1 + 0.2)
    log.close()
    assert sink.closed
    assert sink.got == [json.loads((tmp_path / "metrics.jsonl").read_text())]


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"train\.batch_size \(4\) is not a multiple of train\.accumulation"
    ):
        TrainConfig(steps=1, batch_size=4, accumulation=3)
