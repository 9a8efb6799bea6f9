"""A run's folder: what may become one, who holds it, which changes of its recipe are taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import DiskError, RunError
from expertise.lm.recipe import may_change
from expertise.runs import folder
from expertise.runs import recipe as recipes

Make = Callable[..., Any]


def test_only_a_free_place_or_a_run_is_taken(tmp_path: Path) -> None:
    folder.require_free_or_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    folder.require_free_or_run(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"other is not a run and is not empty$"):
        folder.require_free_or_run(tmp_path / "other")
    with pytest.raises(RunError, match=r"thesis\.tex is a file, not a folder$"):
        folder.require_free_or_run(tmp_path / "other" / "thesis.tex")


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^no run at .*none$"):
        folder.require_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"is not a run: it has no recipe\.toml$"):
        folder.require_run(tmp_path)


def test_changes_that_a_run_may_not_take_are_named_with_old_and_new(
    tmp_path: Path, small_recipe: Make
) -> None:
    folder.adopt_recipe(tmp_path, small_recipe(), may_change)
    before = (tmp_path / "recipe.toml").read_bytes()
    for setting, message in {
        "model.router.p=0.5": "model.router.p = 0.4; the recipe now says 0.5",
        "optimizer.learning_rate=1e-3": "optimizer.learning_rate = 0.01; the recipe now says 0.001",
        "train.seed=1": "train.seed = 0; the recipe now says 1",
        "model.router={name='top_k', k=1}": "model.router.name = 'top_p'; the recipe now says 'top_k'",
        "train.batch_size=8": "train.batch_size = 4; the recipe now says 8",
        "train.accumulation=2": "train.accumulation = 1; the recipe now says 2",
    }.items():
        with pytest.raises(RunError) as caught:
            # A change that is allowed beside one that is not changes nothing either.
            folder.adopt_recipe(tmp_path, small_recipe("train.steps=99", setting), may_change)
        assert caught.value.message == f"{tmp_path} was made with {message}"
        assert (tmp_path / "recipe.toml").read_bytes() == before


def test_changes_that_a_run_may_take_are_written(tmp_path: Path, small_recipe: Make) -> None:
    folder.adopt_recipe(tmp_path, small_recipe(), may_change)
    longer = small_recipe("train.steps=99", "train.save_every=7", "train.keep=5", "train.threads=2")
    folder.adopt_recipe(tmp_path, longer, may_change)
    assert folder.read_recipe(tmp_path, type(longer)) == longer


def test_a_damaged_recipe_is_named(tmp_path: Path, small_recipe: Make) -> None:
    recipe = small_recipe()
    folder.adopt_recipe(tmp_path, recipe, may_change)
    path = tmp_path / "recipe.toml"
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    with pytest.raises(recipes.RecipeError, match=r"recipe\.toml|lacks"):
        folder.read_recipe(tmp_path, type(recipe))


def test_a_run_is_held_once_and_the_holder_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with folder.held(run):
        with pytest.raises(RunError) as caught, folder.held(run):
            pass
        assert caught.value.message == f"{run} is in use by process {os.getpid()}"
        (run / "recipe.toml").write_text("a = 1")
    with folder.held(run):
        pass
    assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == ["recipe.toml"]


def test_holding_a_run_that_comes_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError), folder.held(tmp_path / "run"):
        raise RunError("refused")
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".owner").write_text("process 1\n")
    (tmp_path / "recipe.toml").write_text("a = 1")
    folder.require_free_or_run(tmp_path)
    with folder.held(tmp_path):
        assert (tmp_path / ".owner").read_text() == f"process {os.getpid()}\n"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(DiskError, match=r"^cannot write .*run: Read-only") as caught,
        folder.held(tmp_path / "run"),
    ):
        pass
    assert caught.value.hints == ("choose another folder",)
