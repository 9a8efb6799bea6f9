"""Advice that works: hints that name what the user has, in the direction that helps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from expertise.errors import counted, json_kind
from expertise.runs import recipe as recipes
from expertise.runs.divergence import diverged


@pytest.mark.parametrize("command", [["generate", "PATH", "x"], ["evaluate", "PATH"]])
def test_a_wrong_folder_is_no_matter_of_skills(home: Path, expertise, command: list[str]) -> None:
    for place in ("text", "small.toml", "."):
        done = expertise(*(place if word == "PATH" else word for word in command))
        assert done.returncode == 2
        assert "skill" not in done.stderr
        assert "config.json" in done.stderr


def test_a_run_inside_a_folder_and_a_name_nearby_are_named(
    run_folder: Path, expertise, expertise_in, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "runs" / "small")
    there = expertise_in(tmp_path)
    assert "there is a run in it: runs/small" in there("generate", "runs", "x").stderr
    assert "did you mean runs/small?" in there("generate", "runs/smal", "x").stderr
    assert "did you mean runs/small?" in there("inspect", "runs/smal").stderr


def test_a_device_is_advised_where_it_is_chosen(run_folder: Path, expertise) -> None:
    done = expertise("generate", "run", "x", "--device", "mps")
    assert done.returncode == 2
    assert "--device" in done.stderr


@pytest.mark.parametrize(
    ("optimizer", "advised", "never"),
    [
        (
            {"learning_rate": 1e-3, "warmup": 0, "clip": 1.0},
            ["longer optimizer.warmup", "lower optimizer.clip"],
            [],
        ),
        (
            {"learning_rate": 1e-3, "warmup": 0, "clip": 0.0},
            ["optimizer.clip = 1.0"],
            ["lower optimizer.clip"],
        ),
        # A policy's optimizer has neither of the two keys: they would be refused.
        ({"learning_rate": 1e-3, "schedule": "cosine"}, [], ["warmup", "clip"]),
    ],
)
def test_a_diverged_run_is_advised_what_its_recipe_takes(
    tmp_path: Path, optimizer: dict[str, object], advised: list[str], never: list[str]
) -> None:
    import tomlkit

    (tmp_path / "recipe.toml").write_text(tomlkit.dumps({"optimizer": optimizer}))
    hints = "\n".join(diverged(tmp_path, 3, "the loss").hints)
    assert "a lower optimizer.learning_rate" in hints
    assert all(words in hints for words in advised)
    assert not any(words in hints for words in never)


def test_a_skill_s_folder_in_use_is_not_to_be_deleted(run_folder: Path, home: Path, expertise) -> None:
    from expertise.runs import folder

    with folder.held(home / "work"):
        done = expertise("skill", "learn", "run", "--data", "text", "--name", "new", "--work", "work")
    assert done.returncode == 2
    assert "in use" in done.stderr
    assert "delete" not in done.stderr


def test_numbers_with_their_nouns_and_kinds_of_values() -> None:
    assert [counted(n, "record") for n in (0, 1, 2, 12345)] == [
        "0 records",
        "1 record",
        "2 records",
        "12,345 records",
    ]
    assert counted(3, "trajectory", "trajectories") == "3 trajectories"
    values = [None, True, False, 3, 2.5, "a", [1], (1,), {}]
    assert [json_kind(value) for value in values] == (
        ["null", "true", "false", "a number", "a number", "text", "a list", "a list", "an object"]
    )
    assert recipes.shown({"a": None, "b": [True, 1.5, "x"]}) == "{b = [true, 1.5, 'x']}"
    assert recipes.shown(None) == "nothing"
