"""Going on with changed keys: in smaller pieces after too little memory, longer under a schedule."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import DeviceError, RunError
from expertise.lm.task import LanguageModelTask
from expertise.lm.train import check, train
from expertise.runs.metrics import read_lines

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("same_threads")

# Rows hold whole documents, more and fewer tokens each.
RAGGED = ("data.pack=documents", "balance.per=sequence", "balance.device=0.1", "balance.z=0.01")


def quiet(_line: str) -> None:
    """Say nothing."""


def training(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "train"]


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2)])
def test_a_run_goes_on_in_other_pieces(tmp_path: Path, small_recipe: Make, before: int, after: int) -> None:
    settings = (*RAGGED, "train.steps=6", "train.save_every=3")
    first, second = (f"train.accumulation={number}" for number in (before, after))
    train(small_recipe(*settings, first), tmp_path / "whole", quiet)
    train(small_recipe(*settings, first, "train.steps=3"), tmp_path / "cut", quiet)
    train(small_recipe(*settings, second), tmp_path / "cut", quiet)
    assert f"accumulation = {after}" in (tmp_path / "cut" / "recipe.toml").read_text("utf-8")
    whole, cut = training(tmp_path / "whole"), training(tmp_path / "cut")
    assert len(whole) == len(cut) == 6
    assert whole[:3] == cut[:3]
    for one, other in zip(whole[3:], cut[3:], strict=True):
        for key, value in one.items():
            if key != "kind":
                assert other[key] == pytest.approx(value, rel=1e-3), key


def test_pieces_that_would_train_something_else_are_refused_with_the_reason(
    tmp_path: Path, small_recipe: Make
) -> None:
    train(small_recipe("train.steps=2"), tmp_path / "run", quiet)
    before = (tmp_path / "run" / "recipe.toml").read_bytes()
    for do in (train, check):
        with pytest.raises(RunError, match=r"train\.accumulation = 1; the recipe now says 2") as caught:
            do(small_recipe("train.accumulation=2"), tmp_path / "run", quiet)
        assert 'balance.per = "batch"' in caught.value.hints[0]
    assert (tmp_path / "run" / "recipe.toml").read_bytes() == before


def out_of_memory(*_args: Any) -> Any:
    raise torch.OutOfMemoryError("no room")


def test_what_is_advised_for_too_little_memory_can_be_followed(
    tmp_path: Path, small_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelTask, "losses", out_of_memory)
        with pytest.raises(DeviceError, match="out of memory") as caught:
            train(small_recipe(*RAGGED), tmp_path / "run", quiet)
    assert len(caught.value.hints) <= 3
    (setting,) = re.findall(r"--set (\S+)", " ".join(caught.value.hints))
    assert setting == "train.accumulation=2"
    train(small_recipe(*RAGGED, setting), tmp_path / "run", quiet)
    assert len(training(tmp_path / "run")) == 4


@pytest.mark.parametrize("settings", [(), (*RAGGED, "train.accumulation=4")], ids=["kept", "in single rows"])
def test_nothing_is_advised_that_the_run_would_refuse(
    tmp_path: Path, small_recipe: Make, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    monkeypatch.setattr(LanguageModelTask, "losses", out_of_memory)
    with pytest.raises(DeviceError) as caught:
        train(small_recipe(*settings), tmp_path / "run", quiet)
    (hint,) = caught.value.hints
    assert "another --out" in hint
    assert "lower train.batch_size" in hint
    assert ("train.accumulation" in hint) == (not settings)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
@pytest.mark.parametrize("do", [train, check], ids=["train", "check"])
def test_a_jump_of_the_rate_is_said_and_can_be_avoided(
    tmp_path: Path, small_recipe: Make, schedule: str, do: Any
) -> None:
    settings = (f"optimizer.schedule={schedule}", "optimizer.warmup=0")
    said: list[str] = []
    run = tmp_path / "run"
    train(small_recipe(*settings, "train.steps=4"), run, said.append)
    train(small_recipe(*settings, "train.steps=4"), run, said.append)
    assert not [line for line in said if "learning rate" in line]
    do(small_recipe(*settings, "train.steps=8"), run, said.append)
    (note,) = [line for line in said if "learning rate" in line]
    was, now = {"cosine": (0.001, 0.0055), "steps": (0.01 * 0.316**2, 0.01)}[schedule]
    assert f"from {was:.3g} to {now:.3g} after step 4" in note
    (setting,) = re.findall(r"--set (\S+)", note)
    if do is train:
        assert training(run)[4]["learning_rate"] == pytest.approx(now)
        return
    train(small_recipe(*settings, "train.steps=8", setting), run, said.append)
    assert len([line for line in said if "learning rate" in line]) == 1
    assert [line["learning_rate"] for line in training(run)[4:]] == pytest.approx([was] * 4)


def test_a_shorter_run_and_one_under_way_jump_too(tmp_path: Path, small_recipe: Make) -> None:
    cosine = ("optimizer.schedule=cosine", "optimizer.warmup=0", "train.save_every=1")
    said: list[str] = []
    run = tmp_path / "run"
    train(small_recipe(*cosine, "train.steps=2", "optimizer.schedule_steps=8"), run, said.append)
    check(small_recipe(*cosine, "train.steps=8"), run, said.append)
    assert not [line for line in said if "learning rate" in line], "the schedule is the same"
    check(small_recipe(*cosine, "train.steps=4"), run, said.append)
    (note,) = [line for line in said if "learning rate" in line]
    assert "optimizer.schedule_steps=8" in note
    # A constant rate cannot jump.
    constant = tmp_path / "constant"
    train(small_recipe("train.steps=2"), constant, said.append)
    train(small_recipe("train.steps=3"), constant, said.append)
    assert len([line for line in said if "learning rate" in line]) == 1
