"""A run's folder: what may become one, who holds it, which changes of its recipe are taken."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import DiskError, RunError
from expertise.lm.recipe import Recipe, may_change
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


def other(key: str, value: Any) -> Any:
    """Another value that is valid where `value` is, for every key of the small recipe."""
    special = {
        "data.source": "elsewhere",
        "tokenizer.path": "tokenizer.json",
        "model.dim": 64,
        "model.num_heads": 4,
        "model.num_kv_heads": 1,
        "model.init": 0.02,
        "model.router": {"name": "top_k", "k": 1},
        "model.router.max_parts": 2,
        "model.router.scale": 2.0,
        "model.router.routing_dtype": "activation",
        "model.override": [{"layers": [0], "num_parts": 3}],
        "model.parts.name": None,
        "model.router.name": None,
        "model.router.nothing": None,  # not beside a balance loss
        "model.first_dense": 1,
        "model.every": 2,
        "balance.per": "sequence",
        "optimizer.schedule": "cosine",
        "train.device": "auto",
        "train.on_non_finite": "skip",
        "train.accumulation": 2,
    }
    if key in special:
        return special[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 4
    if isinstance(value, float):
        return value / 2 if value else 0.25
    return None


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from leaves(value, here)
        else:
            yield here, value


def test_every_key_is_either_taken_or_refused_by_name(tmp_path: Path, small_values: dict[str, Any]) -> None:
    base = {**small_values, "model": {**small_values["model"], "dense_hidden": 16}}
    recipe = recipes.build(base, Recipe)
    folder.adopt_recipe(tmp_path, recipe, may_change)
    before = (tmp_path / "recipe.toml").read_bytes()
    taken, refused = set(), set()
    for key, value in leaves(dataclasses.asdict(recipe)):
        if (wanted := other(key, value)) is None:
            continue
        values = copy.deepcopy(base)
        *tables, last = key.split(".")
        table: Any = values
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = wanted
        changed = recipes.build(values, Recipe)
        if may_change(key) and not recipe.why_kept(key):
            assert folder.refuse_changes(tmp_path, changed, may_change)
            taken.add(key)
            continue
        with pytest.raises(RunError) as caught:
            folder.refuse_changes(tmp_path, changed, may_change)
        start = f"{tmp_path} was made with {key} = {recipes.shown(value)}; the recipe now says "
        assert caught.value.message.startswith(start)
        refused.add(key)
    assert taken == {
        "train.steps",
        "optimizer.schedule_steps",
        "train.evaluate_every",
        "train.save_every",
        "train.log_every",
        "train.keep",
        "train.keep_every",
        "train.device",
        "train.threads",
        "train.tensorboard",
        "train.on_non_finite",
        "train.skip_limit",
        "evaluation.batch_size",
    }
    assert len(refused) > 35, refused
    assert (tmp_path / "recipe.toml").read_bytes() == before


def test_changes_that_a_run_may_take_are_written(tmp_path: Path, small_recipe: Make) -> None:
    folder.adopt_recipe(tmp_path, small_recipe(), may_change)
    longer = small_recipe("train.steps=99", "train.save_every=7", "train.keep=5", "train.threads=2")
    folder.adopt_recipe(tmp_path, longer, may_change)
    assert folder.read_recipe(tmp_path, type(longer)) == longer


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (("balance.per=batch",), "expert"),
        (("balance.per=batch", "balance.expert=0", "balance.device=0.1"), "device"),
        (("balance.per=sequence", "balance.device=0.1"), ""),
        (("balance.per=batch", "balance.expert=0", "balance.entropy=1", "balance.z=1"), ""),
        (("balance.expert=0", "balance.entropy=0", "model.router={name='hash'}"), ""),
    ],
)
def test_accumulation_may_change_where_it_changes_rounding_alone(
    tmp_path: Path, small_recipe: Make, settings: tuple[str, ...], kept: str
) -> None:
    folder.adopt_recipe(tmp_path, small_recipe(*settings), may_change)
    cut = small_recipe(*settings, "train.accumulation=2")
    if not kept:
        assert folder.refuse_changes(tmp_path, cut, may_change)
        return
    with pytest.raises(RunError, match=r"train\.accumulation = 1; the recipe now says 2") as caught:
        folder.refuse_changes(tmp_path, cut, may_change)
    assert f"balance.{kept}" in caught.value.hints[0]


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


def test_a_run_that_was_killed_before_its_recipe_stood_is_taken_up(
    tmp_path: Path, small_recipe: Make
) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".recipe.toml.0123abcd.part").write_text("[da")
    folder.require_free_or_run(tmp_path)
    with folder.held(tmp_path):
        folder.adopt_recipe(tmp_path, small_recipe(), may_change)
    names = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert names == {"recipe.toml"}, "what the killed one left aside is cleared away"


def test_a_second_process_is_refused_before_it_prepares_anything(
    tmp_path: Path, small_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.lm import train as training

    run = tmp_path / "run"
    folder.refuse_if_held(run)
    assert not run.exists()
    monkeypatch.setattr(training, "prepare", lambda *_: pytest.fail("text was prepared"))
    with folder.held(run):
        (run / "recipe.toml").write_text(recipes.to_toml(small_recipe()))
        with pytest.raises(RunError, match=rf"is in use by process {os.getpid()}$"):
            training.train(small_recipe(), run, lambda _: None)
    folder.refuse_if_held(run)


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
