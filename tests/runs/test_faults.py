"""The full lists of what can go wrong with a run: `make test-faults`. A few of each run in `make test`."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faulty
import pytest
from faulty import content, lines, wait_until

from expertise.lm.train import train
from expertise.runs import checkpoint

pytestmark = [pytest.mark.faults, pytest.mark.slow]

KILLS = 25
SETTINGS = (
    "train.steps=60",
    "train.accumulation=2",
    "train.save_every=2",
    "train.evaluate_every=5",
    "train.keep_every=20",
    "optimizer.schedule=steps",
)
Make = Callable[..., Any]


@pytest.fixture
def progress(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(line: str) -> None:
        with capsys.disabled():
            print(f"  {line}", flush=True)

    return say


@pytest.mark.parametrize("router", sorted(faulty.ROUTERS))
def test_many_kills_at_random_moments(
    tmp_path: Path, start: Make, small_recipe: Make, recipe_file: Make, progress: Make, router: str
) -> None:
    settings = (*SETTINGS, faulty.router_setting(router))
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    run, dice, log = tmp_path / "run", random.Random(f"kills {router}"), tmp_path / "log"
    command = ["train", str(recipe_file(*settings)), "--out", str(run)]
    while_saving = 0
    progress(f"{router}: {settings[-1]}")
    for number in range(KILLS):
        process = start(faulty.slowly, command, number, str(log))
        # In turn: any time after the start; some lines further on; while a checkpoint is being written.
        moment = number % 3
        if moment == 0:
            time.sleep(dice.random() * 1.0)
        elif moment == 1:
            there = lines(run) + dice.randint(1, 3)
            wait_until(lambda there=there: lines(run) >= there, process)
            time.sleep(dice.random() * 0.05)
        else:
            wait_until(lambda: not faulty.saving(run), process)  # what the last kill left aside
            wait_until(lambda: faulty.saving(run), process)
            time.sleep(dice.random() * 0.15)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"ended by itself: {log.read_text('utf-8')}"
        while_saving += faulty.saving(run)
        newest = max((int(p.name[5:]) for p in run.glob("checkpoints/step-*[0-9]")), default=0)
        progress(f"kill {number + 1} of {KILLS}: step {newest} saved, {lines(run)} lines of metrics")
    assert while_saving >= 5, "too few kills met a checkpoint that was being written"
    process = start(faulty.plainly, command, str(log))
    process.join()
    assert process.exitcode == 0, log.read_text("utf-8")
    assert content(run) == content(tmp_path / "undisturbed")
    kept = [p.name for p in (tmp_path / "undisturbed" / "checkpoints").iterdir()]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == sorted(kept)
    progress(
        f"{while_saving} kills met a checkpoint that was being written; the end is the same, bit for bit"
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_recipe: Make) -> Path:
    """A run with checkpoints after steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train(small_recipe(*SETTINGS, "train.steps=6", "train.keep=3"), run, lambda _: None)
    return run


@pytest.mark.parametrize("damage", sorted(faulty.DAMAGE))
@pytest.mark.parametrize("name", faulty.FILES)
def test_every_file_damaged_in_every_way(
    damaged: Callable[[Path, str, str], None], finished: Path, name: str, damage: str
) -> None:
    damaged(finished, name, damage)


@pytest.fixture
def growing_tmpfs(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system, and a way to set its size."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(
    tmp_path: Path,
    start: Make,
    small_recipe: Make,
    recipe_file: Make,
    growing_tmpfs: tuple[Path, Callable[[str], None]],
) -> None:
    settings = (*SETTINGS, "train.keep=50", "train.steps=12")
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    (place, resize), log = growing_tmpfs, tmp_path / "log"
    run, command = place / "run", ["train", str(recipe_file(*settings)), "--out", str(place / "run")]
    one = sum(p.stat().st_size for p in (tmp_path / "undisturbed/checkpoints/step-2").iterdir())
    resize(str(int(3.5 * one)))
    process = start(faulty.plainly, command, str(log))
    process.join()
    said = log.read_text("utf-8").splitlines()
    assert process.exitcode == 2, said
    error = next(index for index, line in enumerate(said) if line.startswith("error: "))
    assert f"cannot save {run}/checkpoints/step-" in said[error]
    assert "MB are free" in said[error]
    assert "it needs 0.0 MB" not in said[error]
    assert said[error + 1].startswith("  free some space and run the same command again")
    assert len(said) == error + 2
    saved = checkpoint.latest(run)
    assert saved is not None
    assert 2 <= saved.step < 12
    assert not faulty.saving(run), "what was half-written is removed: it fills the disk"
    resize("64m")
    process = start(faulty.plainly, command, str(log))
    process.join()
    assert process.exitcode == 0, log.read_text("utf-8")
    assert content(run) == content(tmp_path / "undisturbed")


def test_a_limit_on_the_size_of_files_is_one_line(
    tmp_path: Path, start: Make, small_recipe: Make, recipe_file: Make
) -> None:
    """Where no file system can be mounted: `ulimit -f` fails in the middle of a write, too."""
    settings = (*SETTINGS, "train.steps=4")
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    run, log = tmp_path / "run", tmp_path / "log"
    command = ["train", str(recipe_file(*settings)), "--out", str(run)]
    process = start(faulty.limited, command, 40_000, str(log))
    process.join()
    said = log.read_text("utf-8").splitlines()
    assert process.exitcode == 2, said
    error = next(index for index, line in enumerate(said) if line.startswith("error: "))
    assert "File too large" in said[error]
    assert len(said) <= error + 4
    assert checkpoint.latest(run) is None
    process = start(faulty.plainly, command, str(log))
    process.join()
    assert content(run) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_evaluating_does_not_wait_for_its_end(
    tmp_path: Path, start: Make, small_recipe: Make, recipe_file: Make, number: signal.Signals, code: int
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    dice = random.Random(0)
    for index in range(40):
        words = (f"{dice.choice('bcdfg')}{dice.choice('aeiou')}{dice.choice('lmnrs')}" for _ in range(12_000))
        (text / f"{index}.txt").write_text(" ".join(words), "utf-8")
    settings = (
        f"data.source={text}",
        "train.steps=3",
        "train.evaluate_every=2",
        "evaluation.bytes_per_domain=1000000",
    )
    slow = (*settings, "evaluation.batch_size=1")
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(faulty.plainly, ["train", str(recipe_file(*slow)), "--out", str(run)], str(log))
    wait_until(lambda: lines(run) >= 2, process)
    time.sleep(1.0)  # well into the evaluation after step 2
    assert lines(run) == 2, "the evaluation is too short for this test"
    asked = time.monotonic()
    os.kill(process.pid, number)
    process.join()
    took = time.monotonic() - asked
    assert process.exitcode == code, log.read_text("utf-8")
    assert took < 3, f"{took:.1f} s"
    assert log.read_text("utf-8").splitlines()[-2:] == [
        f"error: stopped by {number.name} after step 2; saved",
        "  run the same command to go on",
    ]
    train(small_recipe(*settings), run, lambda _: None)
    train(small_recipe(*settings), tmp_path / "undisturbed", lambda _: None)
    assert content(run) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("while_", ["reading", "training the tokenizer", "encoding"])
def test_a_signal_while_the_text_is_prepared_leaves_nothing_half_written(
    tmp_path: Path,
    start: Make,
    recipe_file: Make,
    number: signal.Signals,
    code: int,
    while_: str,
) -> None:
    text = tmp_path / "text"
    text.mkdir()
    dice = random.Random(0)
    known = ["".join(dice.choices("abcdefghijklmno", k=dice.randint(2, 9))) for _ in range(5_000)]
    for index in range(40):
        paragraphs = (" ".join(dice.choices(known, k=20)) for _ in range(2_000))
        (text / f"{index}.txt").write_text("\n\n".join(paragraphs), "utf-8")
    run, log, cache = tmp_path / "run", tmp_path / "log", tmp_path / "cache"
    recipe = recipe_file(f"data.source={text}", "tokenizer.vocab_size=2000")
    process = start(faulty.with_cache, ["train", str(recipe), "--out", str(run)], str(cache), str(log))
    wait_until(lambda: log.exists() and while_ in log.read_text("utf-8"), process)
    time.sleep(0.2)
    asked = time.monotonic()
    os.kill(process.pid, number)
    process.join()
    took = time.monotonic() - asked
    assert process.exitcode == code, log.read_text("utf-8")
    assert took < 5, f"{took:.1f} s"
    assert not run.exists()
    half = [path for path in cache.rglob("*") if path.name.endswith((".part", ".old"))]
    assert half == []
    said = "interrupted" if number == signal.SIGINT else "terminated"
    assert log.read_text("utf-8").splitlines()[-1] == f"{said}; what was saved before is whole"


def test_a_second_ctrl_c_leaves_at_once(
    tmp_path: Path, start: Make, small_recipe: Make, recipe_file: Make
) -> None:
    """Slow saving holds the first one up; the second ends it, and the checkpoint before it stays."""
    settings = (*SETTINGS, "train.steps=4000")
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(faulty.stuck, ["train", str(recipe_file(*settings)), "--out", str(run)], str(log))
    wait_until(lambda: lines(run) >= 4 and faulty.saving(run), process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    asked = time.monotonic()
    process.join()
    assert time.monotonic() - asked < 2
    assert process.exitcode == 130, log.read_text("utf-8")
    saved = checkpoint.latest(run)
    assert saved is not None
    assert saved.step == 2
    assert not faulty.saving(run)
