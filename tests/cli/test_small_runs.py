"""Small runs: what is said of them, a finished one that is started again, one that is to be shorter."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from expertise.errors import RunError, amount
from expertise.runs import folder


@pytest.fixture
def finished(run_folder: Path, home: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in the folder of the commands."""
    place = home / tmp_path.name
    shutil.copytree(run_folder, place)
    return place


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_small_numbers_are_said_in_full(home: Path, expertise) -> None:
    done = expertise("train", "small.toml", "--out", "unborn", "--check")
    sizes = re.search(
        r"([\d,]+) parameters, ([\d,]+) activated per token; ([\d,]+) training tokens", done.stderr
    )
    assert sizes is not None, done.stderr
    assert all(int(number.replace(",", "")) > 1000 for number in sizes.groups())
    assert "0.0" not in sizes[0]
    assert [amount(n) for n in (0, 12_345, 999_999, 1_000_000, 2_345_678_901)] == (
        ["0", "12,345", "999,999", "1.00 M", "2,345.68 M"]
    )


def test_tokens_and_epochs_are_said_at_the_end(home: Path, expertise) -> None:
    done = expertise("train", "small.toml", "--out", "told", "--set", "train.steps=30")
    assert done.returncode == 0, done.stderr
    tokens = int(re.search(r"([\d,]+) training tokens", done.stderr)[1].replace(",", ""))
    said = re.search(r"step 30: trained on ([\d,]+) tokens, ([\d.]+) epochs", done.stderr)
    assert said is not None, done.stderr
    seen = int(said[1].replace(",", ""))
    assert seen == 30 * 4 * 32
    # Windows of 32 tokens; the rest that fills none is no part of an epoch.
    assert float(said[2]) == pytest.approx(seen / ((tokens - 1) // 32 * 32), abs=0.006)
    assert re.search(r"step 30/30  loss [\d.]+  [\d.]+ epochs", done.stderr), done.stderr


def test_a_finished_run_says_that_nothing_is_trained_and_how_to_go_on(finished: Path, expertise) -> None:
    before = files(finished)
    done = expertise("train", "small.toml", "--out", finished.name)
    assert done.returncode == 0
    assert "nothing is trained" in done.stderr
    advice = re.search(r"--set (train\.steps=\d+)", done.stderr)
    assert advice is not None
    assert files(finished) == before
    # The advice works.
    done = expertise("train", "small.toml", "--out", finished.name, "--set", advice[1])
    assert done.returncode == 0, done.stderr
    assert f"step {advice[1].partition('=')[2]}" in done.stdout
    assert "nothing is trained" not in done.stderr


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_fewer_steps_than_were_trained_are_refused(finished: Path, expertise, steps: int) -> None:
    before = files(finished)
    for more in ([], ["--check"]):
        done = expertise(
            "train", "small.toml", "--out", finished.name, "--set", f"train.steps={steps}", *more
        )
        assert done.returncode == 2, done.stderr
        assert f"was trained for 6 steps already; train.steps = {steps} is less" in done.stderr
        assert "--out" in done.stderr
        assert ("step-3" in done.stderr) == (steps == 3), "there is a checkpoint of step 3"
    assert files(finished) == before


def test_as_many_steps_as_are_left_are_taken(finished: Path, expertise) -> None:
    shutil.rmtree(finished / "checkpoints" / "step-6")
    done = expertise("train", "small.toml", "--out", finished.name, "--set", "train.steps=4")
    assert done.returncode == 0, done.stderr
    assert "step 4," in done.stdout


def test_as_many_steps_as_were_trained_are_no_fewer(finished: Path) -> None:
    with pytest.raises(RunError, match="is less"):
        folder.refuse_fewer_steps(finished, 6, 5)
    folder.refuse_fewer_steps(finished, 6, 6)


def test_a_skill_s_training_says_so_too(run_folder: Path, home: Path, expertise) -> None:
    words = [
        "skill",
        "learn",
        "run",
        "--data",
        "text",
        "--name",
        "tiny",
        "--batch-size",
        "2",
        "--work",
        "tiny",
    ]
    first = expertise(*words, "--steps", "4", "--library", "first", "--set", "train.threads=1")
    assert first.returncode == 0, first.stderr
    assert "epochs" in first.stderr
    again = expertise(*words, "--steps", "4", "--library", "again", "--set", "train.threads=1")
    assert "nothing is trained" in again.stderr, again.stderr
    less = expertise(*words, "--steps", "2", "--library", "less", "--set", "train.threads=1")
    assert less.returncode == 2
    assert "is less" in less.stderr
    assert "--work" in less.stderr
    assert "--out" not in less.stderr
