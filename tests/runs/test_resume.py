"""Real processes on a language model's run: killed at any moment, stopped by signals, started twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import RunError
from expertise.lm.train import train
from expertise.runs import checkpoint
from expertise.runs import recipe as recipes

SETTINGS = (
    "train.steps=12",
    "train.accumulation=2",
    "train.save_every=2",
    "train.evaluate_every=3",
    "optimizer.schedule=steps",
)
ROUTERS = {
    "top-p": "model.router={name='top_p', p=0.4, max_parts=3}",
    "top-k": "model.router={name='top_k', k=2}",
}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """`start("train", …)`: the command in a process that is forked from one which has imported torch."""
    from expertise.cli.main import main

    context = multiprocessing.get_context("forkserver")
    # All that a command imports on its way, torch._dynamo by the first optimizer step.
    heavy = ["torch._dynamo", "pydantic", "typer", "tokenizers", "filelock", "tomlkit", "safetensors.torch"]
    context.set_forkserver_preload(["pytest", "expertise.cli.main", "expertise.lm.train", *heavy])
    started = []

    def begin(*arguments: str) -> Any:
        process = context.Process(target=main, args=([*arguments],))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()
        process.close()


@pytest.fixture
def recipe_file(tmp_path: Path, small_recipe: Callable[..., Any]) -> Callable[..., Path]:
    def write(*settings: str) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(recipes.to_toml(small_recipe(*settings)), "utf-8")
        return path

    return write


def content(run: Path) -> dict[str, bytes]:
    found = checkpoint.latest(run)
    assert found is not None
    names = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "model.json")
    files = {name: (found.path / name).read_bytes() for name in names}
    return {**files, "metrics": (run / "metrics.jsonl").read_bytes()}


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(condition: Callable[[], bool], process: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    alive = process.is_alive if hasattr(process, "is_alive") else lambda: process.poll() is None
    while not condition() and alive():
        if time.monotonic() > end:
            pytest.fail("the process did not come so far")


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_killed_at_any_moment_and_gone_on_equals_undisturbed(
    tmp_path: Path,
    start: Callable[..., Any],
    small_recipe: Callable[..., Any],
    recipe_file: Callable[..., Path],
    router: str,
) -> None:
    settings = (*SETTINGS, ROUTERS[router])
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    run, dice = tmp_path / "run", random.Random(router)

    def saving() -> bool:
        return any(run.glob("checkpoints/.step-*"))

    def after(number: int) -> Callable[[], bool]:
        return lambda: lines(run) >= number

    command = ("train", str(recipe_file(*settings)), "--out", str(run))
    # Before the first checkpoint; in the middle; while a checkpoint is being written.
    killed = 0
    for moment in (after(1), after(dice.randint(4, 9)), saving):
        process = start(*command)
        wait_until(moment, process)
        time.sleep(dice.random() * 0.02 if moment is not saving else 0)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 2, "the run is too short to be killed: raise its steps"
    process = start(*command)
    process.join()
    assert process.exitcode == 0
    assert content(run) == content(tmp_path / "undisturbed")


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
