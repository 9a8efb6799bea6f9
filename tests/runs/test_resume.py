"""Real processes on a language model's run: killed at any moment, stopped by signals, started twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import pytest
from faulty import content, lines, wait_until

from expertise.errors import RunError
from expertise.lm.train import train
from expertise.runs import checkpoint

SETTINGS = (
    "train.steps=12",
    "train.accumulation=2",
    "train.save_every=2",
    "train.evaluate_every=3",
    "optimizer.schedule=steps",
)


@pytest.mark.parametrize("router", sorted(faulty.ROUTERS))
def test_killed_at_any_moment_and_gone_on_equals_undisturbed(
    tmp_path: Path,
    start: Callable[..., Any],
    small_recipe: Callable[..., Any],
    recipe_file: Callable[..., Path],
    router: str,
) -> None:
    """Three kills; `test_faults.py` has 25."""
    settings = (*SETTINGS, faulty.router_setting(router))
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    run, dice = tmp_path / "run", random.Random(router)
    command = ["train", str(recipe_file(*settings)), "--out", str(run)]
    # Before the first checkpoint; in the middle; while a checkpoint is being written.
    moments: tuple[Callable[[], bool], ...] = (
        lambda: lines(run) >= 1,
        lambda: lines(run) >= 5,
        lambda: faulty.saving(run),
    )
    for number, moment in enumerate(moments):
        process = start(faulty.slowly, command, number)
        wait_until(moment, process)
        time.sleep(dice.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run is too short to be killed: raise its steps"
    process = start(faulty.plainly, command)
    process.join()
    assert process.exitcode == 0
    assert content(run) == content(tmp_path / "undisturbed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> Path:
    """A run with checkpoints after steps 2 and 4."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(small_recipe(*SETTINGS, "train.steps=4"), run, lambda _: None)
    return run


# Each file once, each kind of damage at least once; `test_faults.py` has them all.
SOME_DAMAGE = list(zip(faulty.FILES, [*faulty.DAMAGE, *faulty.DAMAGE], strict=False))
assert set(faulty.DAMAGE) == {damage for _, damage in SOME_DAMAGE}


@pytest.mark.parametrize(("name", "damage"), SOME_DAMAGE)
def test_damage_is_named_and_the_run_goes_on_from_the_one_before(
    damaged: Callable[[Path, str, str], None], finished: Path, name: str, damage: str
) -> None:
    damaged(finished, name, damage)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_say_how_to_go_on_and_end_with_their_number(
    tmp_path: Path,
    small_recipe: Callable[..., Any],
    recipe_file: Callable[..., Path],
    number: signal.Signals,
    code: int,
) -> None:
    run, settings = tmp_path / "run", ("train.steps=100000",)
    command = [sys.executable, "-m", "expertise", "train", str(recipe_file(*settings)), "--out", str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: lines(run) >= 3, process)
            with pytest.raises(RunError, match=f"is in use by process {process.pid}$"):
                train(small_recipe(*settings), run, lambda _: None)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == code, err
    saved = checkpoint.latest(run)
    assert saved is not None
    assert err.splitlines()[-2:] == [
        f"error: stopped by {number.name} after step {saved.step}; saved",
        "  run the same command to go on",
    ]
    assert out == ""
    assert lines(run) == saved.step
    assert not (run / ".owner").exists()


def test_the_first_of_two_is_not_disturbed_by_the_second(tmp_path: Path) -> None:
    """The lock is the system's own: it goes with the process that held it, however it ended."""
    from expertise.runs import folder

    run = tmp_path / "run"
    child = os.fork()
    if child == 0:
        with folder.held(run):
            (run / "recipe.toml").write_text("a = 1")
            time.sleep(60)
        os._exit(0)
    try:
        end = time.monotonic() + 20
        while not (run / "recipe.toml").exists() and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(RunError, match=f"in use by process {child}$"), folder.held(run):
            pass
        assert (run / ".owner").exists(), "who is refused must not remove the holder's mark"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with folder.held(run):
        pass
