"""The loop over a task that knows no language: accumulation, saving, going on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import CONFIG, OPTIMIZER, content, steps

from expertise.errors import DiskError, RecipeError, RunError
from expertise.runs import checkpoint, loop
from expertise.runs.config import TrainConfig
from expertise.runs.metrics import MetricsLog, read_lines


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


def test_steps_are_taken_in_training_mode_and_evaluations_are_not(tmp_path: Path, toy: Any) -> None:
    task, seen = toy(), []
    task.model.eval()
    task.before_losses = lambda step, micro: seen.append(task.model[1].training)
    task.before_batch = lambda batch: seen.append(task.model[1].training)
    loop.train(tmp_path, task, dataclasses.replace(CONFIG, steps=4, accumulation=1), OPTIMIZER)
    assert seen == [True, True, True, *[False] * task.batches, True, *[False] * task.batches]


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
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    # The shorter run ends where the longer one evaluates, saves and writes a line as well.
    loop.train(run, toy(), dataclasses.replace(CONFIG, steps=6), OPTIMIZER)
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed
    before = (run / "timing.jsonl").read_bytes()
    capsys.readouterr()
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert "nothing is trained" in capsys.readouterr().err
    with pytest.raises(RunError, match="was trained for 8 steps already"):
        loop.train(run, toy(), dataclasses.replace(CONFIG, steps=5), OPTIMIZER)
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


def test_tables_are_means_by_their_weights(tmp_path: Path, toy: Any) -> None:
    task = toy()
    losses, weights = task.losses, iter([3.0, 1.0])

    def weighed(step: int, micro: int, detail: bool) -> Any:
        tables = {"table": torch.tensor([1.0 + micro, 4.0]), "plain": torch.tensor([2.0 * micro])}
        weight = {"table": torch.tensor(next(weights))}
        return dataclasses.replace(losses(step, micro, detail), tables=tables, weights=weight)

    task.losses = weighed
    loop.train(tmp_path, task, TrainConfig(steps=1, batch_size=4, accumulation=2), OPTIMIZER)
    line = read_lines(tmp_path / "metrics.jsonl")[0]
    assert line["table"] == [1.25, 4.0]
    assert line["plain"] == [1.0]


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


def test_a_damaged_line_in_the_middle_is_refused_by_number(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"a":1}\n{"a"\n{"a":2}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        read_lines(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"a":1}\n\n{"a":2}\n{"a"')
    assert read_lines(tmp_path / "m.jsonl") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_times_are_only_appended_to(tmp_path: Path, toy: Any) -> None:
    before = b""
    for last in (3, 6, 8):
        loop.train(tmp_path, toy(), dataclasses.replace(CONFIG, steps=last), OPTIMIZER)
        after = (tmp_path / "timing.jsonl").read_bytes()
        assert after.startswith(before)
        assert len(after) > len(before)
        before = after
    # Steps 7 and 8 are done again: their lines of metrics are replaced, their times stay.
    (tmp_path / "checkpoints" / "step-8" / "manifest.json").unlink()
    loop.train(tmp_path, toy(), CONFIG, OPTIMIZER)
    after = (tmp_path / "timing.jsonl").read_bytes()
    assert after.startswith(before)
    times = [line["step"] for line in read_lines(tmp_path / "timing.jsonl") if "seconds" in line]
    assert times.count(8) == 2
    kinds = [(line["kind"], line["step"]) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert kinds.count(("train", 8)) == 1


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path, toy: Any) -> None:
    loop.train(tmp_path, toy(), CONFIG, OPTIMIZER)
    other = toy()
    other.model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    with pytest.raises(RunError, match=r"step-8 does not fit the model of the recipe$") as caught:
        loop.train(tmp_path, other, dataclasses.replace(CONFIG, steps=9), OPTIMIZER)
    assert "was written by expertise 0." in caught.value.hints[0]
    assert steps(tmp_path) == ["step-6", "step-8"], "it is whole: not set aside"


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
