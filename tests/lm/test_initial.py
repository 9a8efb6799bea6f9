"""Starting from given weights: what is taken, what is refused by name, going on without the first folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import DataError, ExpertiseError, RecipeError, RunError
from expertise.lm import load
from expertise.lm.evaluate.run import evaluate_run
from expertise.lm.initial import filled_in
from expertise.lm.load import find_checkpoint
from expertise.lm.recipe import Recipe
from expertise.lm.train import check, train
from expertise.runs import checkpoint, folder
from expertise.runs import recipe as recipes
from expertise.runs.files import sha256_of
from expertise.runs.metrics import read_lines

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("same_threads")


def quiet(_line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_recipe: Make) -> Path:
    base = tmp_path_factory.mktemp("initial") / "base"
    threads = torch.get_num_threads()
    train(small_recipe("train.steps=6"), base, quiet)
    torch.set_num_threads(threads)
    return base


@pytest.fixture
def base(trained: Path, tmp_path: Path) -> Path:
    """A copy, which a test may change or remove."""
    return Path(shutil.copytree(trained, tmp_path / "base"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    rows = [{"prompt": f"the {i} ?", "completion": f" red {i}."} for i in range(80)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def values(base: Path, questions: Path) -> dict[str, Any]:
    """The least that a recipe for fine-tuning says."""
    return {
        "init": str(base),
        "data": {"source": str(questions), "kind": "prompt"},
        "optimizer": {"learning_rate": 1e-3, "schedule": "constant"},
        "train": {"steps": 4, "batch_size": 4, "log_every": 1, "threads": 1, "device": "cpu"},
    }


def made(values: dict[str, Any], run: Path, *settings: str) -> Recipe:
    return recipes.build(filled_in(recipes.override(values, settings), run), Recipe)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return find_checkpoint(run).tensors("model")


def remake_manifest(path: Path) -> None:
    step = json.loads((path / "manifest.json").read_text())["step"]
    (path / "manifest.json").unlink()
    (path / "manifest.json").write_text(checkpoint._manifest(path, step))


# --- what is taken --------------------------------------------------------------------------------------


def test_weights_tokenizer_and_architecture_are_the_first_runs(
    base: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # A rate of nearly nothing: what the run ends with is what it began with.
    recipe = made(values, run, "optimizer.learning_rate=1e-12", "train.steps=1")
    train(recipe, run, quiet)
    for name, tensor in weights(base).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=0, atol=1e-9)
    assert (run / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    first, second = load(base), load(run)
    assert first.config == second.config
    saved = find_checkpoint(base)
    assert json.loads((run / "data.json").read_text())["init"] == {
        "path": str(base),
        "checkpoint": str(saved.path),
        "step": 6,
        "sha256": sha256_of(saved.path / "model.safetensors"),
    }
    kept = folder.read_recipe(run, Recipe)
    assert kept == recipe
    assert kept.model == first.config
    assert kept.tokenizer.vocab_size == 300
    assert made(values, run, "optimizer.learning_rate=1e-12", "train.steps=1") == kept


def test_a_checkpoint_serves_as_well_as_a_run(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    moved = shutil.copytree(find_checkpoint(base).path, tmp_path / "moved")
    train(made(values, tmp_path / "a"), tmp_path / "a", quiet)
    values["init"] = str(moved)
    train(made(values, tmp_path / "b"), tmp_path / "b", quiet)
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(tensor, weights(tmp_path / "b")[name])


def test_what_a_recipe_states_may_be_the_same(values: dict[str, Any], small_values: dict[str, Any]) -> None:
    filled = filled_in(values, None)
    stated = filled_in({**values, "model": small_values["model"], "tokenizer": {"vocab_size": 300}}, None)
    assert recipes.build(filled, Recipe) == recipes.build(stated, Recipe)
    assert filled_in({"train": {"steps": 3}}, None) == {"train": {"steps": 3}}
    assert "model" not in values, "the caller's tables stay as they are"


# --- going on -------------------------------------------------------------------------------------------


def test_going_on_needs_the_first_folder_no_more_and_is_exact(
    base: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ("train.accumulation=2", "train.steps=6", "train.evaluate_every=3")
    train(made(values, whole, *settings), whole, quiet)
    train(made(values, cut, *settings, "train.steps=3"), cut, quiet)
    shutil.rmtree(base)
    train(made(values, cut, *settings), cut, quiet)
    for name in ("model.safetensors", "optimizer.safetensors"):
        there, here = (run / "checkpoints" / "step-6" / name for run in (whole, cut))
        assert there.read_bytes() == here.read_bytes()
    lines = [list(read_lines(run / "metrics.jsonl")) for run in (whole, cut)]
    assert lines[0] == lines[1]
    result = evaluate_run(cut, "validation", 0, "cpu", 1, quiet)
    assert result["bits_per_byte"] == lines[0][-1]["bits_per_byte"]


def test_before_its_first_checkpoint_a_run_begins_again_from_the_same_weights(
    base: Path, values: dict[str, Any], tmp_path: Path, small_recipe: Make
) -> None:
    run = tmp_path / "run"
    train(made(values, run), run, quiet)
    expected = weights(run)
    shutil.rmtree(run / "checkpoints")
    train(made(values, run), run, quiet)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, expected[name])
    shutil.rmtree(run / "checkpoints")
    train(small_recipe("train.steps=8"), base, quiet)
    with pytest.raises(RunError, match=r"init has changed: .* began with [0-9a-f]{16}…, .* now has"):
        train(made(values, run), run, quiet)
    shutil.rmtree(base)
    with pytest.raises(RunError, match="init: no run at"):
        train(made(values, run), run, quiet)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("init=elsewhere", "init = '.*base'; the recipe now says 'elsewhere'"),
        ("model.dim=64", r"model\.dim = 32"),
    ],
)
def test_another_beginning_is_refused_by_name(
    values: dict[str, Any], tmp_path: Path, setting: str, message: str
) -> None:
    run = tmp_path / "run"
    train(made(values, run), run, quiet)
    with pytest.raises(RunError, match=message):
        train(made(values, run, setting), run, quiet)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.dim=64", r"model\.dim is 64, but init \(.*base\) has 32"),
        ("model.router.p=0.5", r"model\.router\.p is 0\.5, but init \(.*base\) has 0\.4"),
        ("model.parts.num_parts=8", r"model\.parts\.num_parts is 8, but init \(.*base\) has 4"),
        ("model.vocab_size=400", r"model\.vocab_size is 400, but init \(.*base\) has 300"),
        (
            'model.router={name="top_k",k=2}',
            r"model\.router\.name is 'top_k', but init \(.*base\) has 'top_p'",
        ),
        ("tokenizer.vocab_size=290", r"tokenizer\.vocab_size is 290, but init \(.*base\) has 300 tokens"),
        ("tokenizer.path=/no/such.json", "cannot read the tokenizer /no/such.json"),
        ("model.dimm=64", r"unknown key model\.dimm"),
    ],
)
@pytest.mark.parametrize("do", [train, check], ids=["train", "check"])
def test_another_model_or_tokenizer_is_refused_by_name(
    values: dict[str, Any], tmp_path: Path, setting: str, message: str, do: Any
) -> None:
    run = tmp_path / "run"
    with pytest.raises(ExpertiseError, match=message) as caught:
        do(made(values, run, setting), run, quiet)
    assert "\n" not in caught.value.message
    assert not run.exists()


def test_the_same_tokenizer_may_be_named_and_another_may_not(
    base: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    given = tmp_path / "given.json"
    shutil.copy(base / "tokenizer.json", given)
    check(made(values, tmp_path / "run", f"tokenizer.path={given}"), tmp_path / "run", quiet)
    content = json.loads(given.read_text("utf-8"))
    content["model"]["merges"].pop()
    given.write_text(json.dumps(content), "utf-8")
    with pytest.raises(RecipeError, match=r"tokenizer\.path \(.*given\.json\) is not the tokenizer of init"):
        check(made(values, tmp_path / "run", f"tokenizer.path={given}"), tmp_path / "run", quiet)


def test_a_beginning_that_is_none_is_refused(base: Path, values: dict[str, Any], tmp_path: Path) -> None:
    saved = find_checkpoint(base).path
    (saved / "tokenizer.json").unlink()
    remake_manifest(saved)
    with pytest.raises(RunError, match=r"init: .*step-6 has no tokenizer\.json"):
        made(values, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "init: no run at"), (tmp_path / "empty", "is not a run")):
        with pytest.raises(RunError, match=message):
            made({**values, "init": str(path)}, tmp_path / "run")
    shutil.rmtree(base / "checkpoints")
    with pytest.raises(RunError, match=r"init: .* has no checkpoint yet"):
        made(values, tmp_path / "run")


def test_a_shape_that_does_not_fit_is_named_with_both(
    base: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    saved = find_checkpoint(base).path
    (saved / "model.json").write_text(
        (saved / "model.json").read_text().replace('"hidden": 16', '"hidden": 20')
    )
    remake_manifest(saved)
    with pytest.raises(
        RunError, match=r"do not fit .*: blocks\.0\.feed_forward\..* is \[4, 32, 32\], .* \[4, 40, 32\]"
    ):
        train(made(values, tmp_path / "run"), tmp_path / "run", quiet)
    with pytest.raises(RunError, match=r"blocks\.0\.feed_forward"):
        load(saved)
    assert not (tmp_path / "run").exists()


def test_a_recipe_built_in_python_is_held_to_the_same(
    base: Path, values: dict[str, Any], tmp_path: Path
) -> None:
    recipe = made(values, tmp_path / "run")
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, rope_theta=500.0))
    with pytest.raises(RecipeError, match=r"model\.rope_theta is 500\.0, but init \(.*\) has 10000\.0"):
        check(other, tmp_path / "run", quiet)
    check(
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=0)),
        tmp_path / "run",
        quiet,
    )


def test_too_little_text_does_not_advise_a_context_that_init_decides(
    values: dict[str, Any], tmp_path: Path
) -> None:
    recipe = made(values, tmp_path / "new", "train.batch_size=100000")
    with pytest.raises(DataError, match="one batch needs") as caught:
        train(recipe, tmp_path / "new", quiet)
    assert "train.batch_size" in "\n".join(caught.value.hints)
    assert "model.context" not in "\n".join(caught.value.hints)
