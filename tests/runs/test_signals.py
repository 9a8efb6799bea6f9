"""Signals while the loop runs: the step ends, all is saved, and going on is exact."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import CONFIG, OPTIMIZER, content

from expertise.runs import checkpoint, loop
from expertise.runs.metrics import read_lines
from expertise.runs.signals import Interrupted, Interrupts, Stopped, Terminated, terminating


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


@pytest.mark.parametrize(("batch", "step"), [(0, 3), (1, 6), (2, 8)])
def test_an_evaluation_is_broken_off_and_made_good_when_the_run_goes_on(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes], batch: int, step: int
) -> None:
    run, task, seen = tmp_path / "run", toy(), []

    def interrupt(number: int) -> None:
        seen.append(number)
        if len(seen) == (step // 3 + (step == 8) - 1) * task.batches + batch + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    task.before_batch = interrupt
    with pytest.raises(Stopped, match=f"after step {step}; saved"):
        loop.train(run, task, CONFIG, OPTIMIZER)
    assert seen[-1] == batch, "no further batch is looked at"
    assert read_lines(run / "metrics.jsonl")[-1]["step"] <= step
    assert not loop.is_evaluated(run, step)
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed


def test_a_run_that_is_only_to_be_evaluated_can_be_interrupted_again(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes]
) -> None:
    run = tmp_path / "run"
    for _ in range(3):
        task = toy()
        task.before_losses = lambda step, micro: (
            os.kill(os.getpid(), signal.SIGINT) if (step, micro) == (7, 0) else None
        )
        task.before_batch = lambda batch: (
            os.kill(os.getpid(), signal.SIGINT) if (run / "checkpoints" / "step-8").exists() else None
        )
        with pytest.raises(Stopped, match="after step 8; saved"):
            loop.train(run, task, CONFIG, OPTIMIZER)
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert content(run) == undisturbed


def test_a_second_ctrl_c_leaves_at_once() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal_number == signal.SIGTERM
    with Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_only_the_first_signal_is_remembered_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.signal_number == signal.SIGTERM
        with pytest.raises(Interrupted):
            interrupts.check()
    assert capfd.readouterr().err == "\nfinishing the step and saving\n"


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


def test_training_works_outside_the_main_thread(
    tmp_path: Path, toy: Any, undisturbed: dict[str, bytes]
) -> None:
    run, raised = tmp_path / "run", []

    def work() -> None:
        try:
            loop.train(run, toy(), CONFIG, OPTIMIZER)
        except BaseException as error:
            raised.append(error)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []
    assert signal.getsignal(signal.SIGINT) == before
    assert content(run) == undisturbed


def test_sigterm_unwinds_what_has_nothing_to_finish(tmp_path: Path) -> None:
    tidied = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with terminating():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                tidied.append(True)

    with pytest.raises(Terminated):
        work()
    assert tidied
    assert signal.getsignal(signal.SIGTERM) == before
    thread = threading.Thread(target=lambda: terminating().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
