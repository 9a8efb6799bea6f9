"""Losses, gradients and weights that are not finite: the run stops and says so, or passes the step over."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import CONFIG, OPTIMIZER, content

from expertise.errors import DivergedError
from expertise.runs import checkpoint, loop
from expertise.runs.config import TrainConfig
from expertise.runs.divergence import Skips, all_finite, culprit
from expertise.runs.loop import Losses
from expertise.runs.metrics import read_lines
from expertise.runs.optim import OptimizerConfig

SKIP = dataclasses.replace(CONFIG, on_non_finite="skip")


def bad_at(task: Any, *steps: int) -> Any:
    """The toy with losses that are not finite in the second micro-batch of some steps (from 0)."""

    def spoil(step: int, micro: int) -> None:
        task.factor = math.nan if step in steps and micro == 1 else 1.0

    task.before_losses = spoil
    return task


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
    good, what_to_try, or_skip = caught.value.hints
    assert good == (
        f"the last good checkpoint is {tmp_path / 'checkpoints' / 'step-3'}"
        if at == 4
        else "no checkpoint was saved before"
    )
    assert "optimizer.learning_rate" in what_to_try
    assert "train.on_non_finite=skip" in or_skip
    assert torch.equal(task.model[0].weight, weights[0])


def test_a_gradient_that_is_not_finite_stops(tmp_path: Path, toy: Any) -> None:
    task = toy()
    task.model[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DivergedError, match=r"^step 1: the gradient of 0\.weight is not finite$"):
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


def test_the_part_of_the_loss_and_the_parameter_are_named(toy: Any) -> None:
    model = toy().model
    assert culprit({"loss": 1.0, "balance_z": 2.0}, 3.0, model) == ""
    assert culprit({"loss": 1.0, "balance_z": math.inf}, math.nan, model) == "balance_z (a part of the loss)"
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e30)
    assert culprit({"loss": 1.0}, math.inf, model) == "the norm of the gradient"
    model[2].bias.grad[0] = math.nan
    assert culprit({"loss": 1.0}, math.nan, model) == "the gradient of 2.bias"


def test_one_look_at_all_weights_sees_every_bad_number_and_no_other() -> None:
    good = [torch.randn(3, 2), torch.tensor(0.5), torch.arange(3), torch.zeros(0)]
    assert all_finite(good)
    assert all_finite([*good, torch.full((4,), 1e30)]), "finite, although its squares are not"
    assert all_finite([torch.full((4,), 6e4, dtype=torch.float16), torch.nn.Parameter(torch.ones(2))])
    assert all_finite([])
    for bad in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            spoilt = torch.zeros(5, dtype=dtype)
            spoilt[4] = bad
            assert not all_finite([*good, spoilt])


def test_a_skipped_step_changes_neither_weights_nor_optimizer_and_the_schedule_goes_on(
    tmp_path: Path, toy: Any
) -> None:
    """By hand: the same steps without the bad one, each at the learning rate of its place in the run."""
    config = dataclasses.replace(SKIP, steps=5, log_every=1)
    schedule = dataclasses.replace(OPTIMIZER, schedule="cosine")
    skipping, told = bad_at(toy(), 2), []
    skipping.after_step = lambda: told.append(True)
    loop.train(tmp_path, skipping, config, schedule)
    assert len(told) == 4, "a skipped step moves no bias either"
    task = toy()
    optimizer = schedule.build(task.model)
    for step in range(5):
        losses = [task.losses(step, micro, False).total / 2 for micro in range(2)]  # draws as the run does
        if step == 2:
            continue
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, 5)
        sum(losses).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), schedule.clip)
        optimizer.step()
        optimizer.zero_grad()
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    for name, value in saved.tensors("model").items():
        torch.testing.assert_close(value, task.model.state_dict()[name])
    assert all(float(v) == 4 for k, v in saved.tensors("optimizer").items() if k.endswith("::step"))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"]) for line in lines if line["kind"] != "evaluation"] == [
        ("train", 1),
        ("train", 2),
        ("skipped", 3),
        ("train", 4),
        ("train", 5),
    ]
    assert [line for line in lines if line["kind"] == "skipped"] == [
        {
            "kind": "skipped",
            "step": 3,
            "rows": 12,
            "skipped": True,
            "reason": "the loss",
            "skipped_total": 1,
        }
    ]


@pytest.mark.parametrize("at", [3, 4, 6])
def test_going_on_after_skipped_steps_is_exact(tmp_path: Path, toy: Any, at: int) -> None:
    """Killed on either side of a checkpoint (after step 3 and 6) that lies within a row of bad steps."""
    bad = (1, 2, 3, 5)
    loop.train(tmp_path / "whole", bad_at(toy(), *bad), SKIP, OPTIMIZER)
    run, task = tmp_path / "run", bad_at(toy(), *bad)
    spoil = task.before_losses

    def die(step: int, micro: int) -> None:
        if step == at:
            raise RuntimeError("killed")
        spoil(step, micro)

    task.before_losses = die
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(run, task, SKIP, OPTIMIZER)
    loop.train(run, bad_at(toy(), *bad), SKIP, OPTIMIZER)
    assert content(run) == content(tmp_path / "whole")
    totals = [line["skipped_total"] for line in read_lines(run / "metrics.jsonl") if "skipped" in line]
    assert totals == [1, 2, 3, 4]


@pytest.mark.parametrize("killed", [False, True])
def test_too_many_in_a_row_stop_the_run(tmp_path: Path, toy: Any, killed: bool) -> None:
    config = dataclasses.replace(SKIP, skip_limit=3)
    bad = (0, 1, 3, 4, 5)
    if killed:  # the row is counted on over the end of a process
        config = dataclasses.replace(config, steps=5)
        loop.train(tmp_path, bad_at(toy(), *bad), config, OPTIMIZER)
        config = dataclasses.replace(config, steps=8)
    with pytest.raises(
        DivergedError, match=r"^step 6: the loss is not finite, and 3 steps in a row were skipped$"
    ) as caught:
        loop.train(tmp_path, bad_at(toy(), *bad), config, OPTIMIZER)
    assert "step-5" in caught.value.hints[0] if killed else "step-3" in caught.value.hints[0]
    assert not any("on_non_finite" in hint for hint in caught.value.hints)


def test_what_cannot_be_skipped_stops(tmp_path: Path, toy: Any) -> None:
    """Weights that a finite step has spoilt, and an evaluation that is not finite, are no step's fault."""
    huge = OptimizerConfig(learning_rate=3e38, weight_decay=2.0, schedule="constant")
    with pytest.raises(DivergedError, match=r"a new weight is not finite"):
        loop.train(tmp_path / "a", toy(), TrainConfig(steps=1, batch_size=4, on_non_finite="skip"), huge)
    task = toy()
    task.evaluate = lambda between: {"score": {"mean": math.nan}}
    with pytest.raises(DivergedError, match=r"^step 3: the evaluation is not finite$"):
        loop.train(tmp_path / "b", task, SKIP, OPTIMIZER)


def test_weights_spoilt_by_the_last_step_are_not_saved_when_a_signal_comes(tmp_path: Path, toy: Any) -> None:
    import os
    import signal

    huge = OptimizerConfig(learning_rate=3e38, weight_decay=2.0, schedule="constant")
    task = toy()
    task.before_losses = lambda step, micro: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(DivergedError, match="a new weight"):
        loop.train(tmp_path, task, TrainConfig(steps=9, batch_size=4, log_every=9), huge)
    assert checkpoint.latest(tmp_path) is None


def test_rows_are_counted_from_the_metrics() -> None:
    lines = [{"kind": "skipped", "step": step} for step in (2, 5, 6, 7)] + [{"kind": "train", "step": 8}]
    assert (Skips(lines, 7).total, Skips(lines, 7).in_a_row) == (4, 3)
    assert Skips(lines, 8).in_a_row == 0
    assert Skips([], 0).total == 0


def test_a_bad_part_of_the_loss_is_the_reason_in_the_metrics(tmp_path: Path, toy: Any) -> None:
    task = toy()
    plain = task.losses

    def with_part(step: int, micro: int, detail: bool) -> Losses:
        found = plain(step, micro, detail)
        part = torch.tensor(math.inf if step == 1 else 0.5)
        return Losses(found.total + part, {**found.reported, "balance_z": part}, found.tables)

    task.losses = with_part
    loop.train(tmp_path, task, dataclasses.replace(SKIP, steps=3), OPTIMIZER)
    skipped = [line for line in read_lines(tmp_path / "metrics.jsonl") if line["kind"] == "skipped"]
    assert [line["reason"] for line in skipped] == ["balance_z (a part of the loss)"]
    assert "Infinity" not in (tmp_path / "metrics.jsonl").read_text(), "Infinity is not JSON"
