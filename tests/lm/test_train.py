"""From a recipe to a run: what is written, what is refused before anything is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import DataError, DeviceError, DivergedError, ExpertiseError, RecipeError, RunError
from expertise.lm import load
from expertise.lm.train import check, is_finished, result, train
from expertise.runs import checkpoint
from expertise.runs.device import resolve
from expertise.runs.metrics import read_lines

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("same_threads")


def quiet(_line: str) -> None:
    """Say nothing."""


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_recipe: Make) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    threads = torch.get_num_threads()
    train(small_recipe(), run, quiet)
    torch.set_num_threads(threads)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_holds_what_is_promised(run: Path, small_recipe: Make) -> None:
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        "recipe.toml",
        "tokenizer.json",
        "data.json",
        "held-out",
        "metrics.jsonl",
        "timing.jsonl",
        "checkpoints",
    }
    assert is_finished(run, small_recipe())
    assert not is_finished(run, small_recipe("train.steps=5"))
    assert not is_finished(run.parent / "none", small_recipe())
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [line["tokens"] for line in lines if line["kind"] == "train"] == [128, 256, 384, 512]
    assert {"loss", "balance_expert", "balance_entropy", "load_0", "load_1"} <= set(lines[0])
    assert not any("time" in key or "second" in key for line in lines for key in line)
    assert result(run)["bits_per_byte"] == lines[-1]["bits_per_byte"]
    assert result(run)["step"] == 4


def test_the_same_recipe_and_seed_give_the_same_run(run: Path, tmp_path: Path, small_recipe: Make) -> None:
    torch.manual_seed(99)
    train(small_recipe(), tmp_path / "again", quiet)
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    train(small_recipe("train.seed=1"), tmp_path / "other", quiet)
    assert (tmp_path / "other" / "metrics.jsonl").read_bytes() != (run / "metrics.jsonl").read_bytes()


def test_training_learns(tmp_path: Path, small_recipe: Make) -> None:
    train(small_recipe("train.steps=40", "train.log_every=1"), tmp_path / "run", quiet)
    losses = [line["loss"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert sum(losses[-5:]) / 5 < losses[0] - 1.0


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_large_batch(tmp_path: Path, small_recipe: Make, accumulation: int) -> None:
    settings = ("balance.per=sequence", "balance.z=0.01", "train.steps=3")
    train(small_recipe(*settings), tmp_path / "whole", quiet)
    train(small_recipe(*settings, f"train.accumulation={accumulation}"), tmp_path / "cut", quiet)
    whole, cut = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        if a["kind"] == "train":
            for key in ("loss", "balance_expert", "balance_entropy", "balance_z", "gradient_norm"):
                assert a[key] == pytest.approx(b[key], rel=1e-3)


def test_a_loaded_model_says_what_the_run_measured(run: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = load(run)
    assert torch.equal(torch.get_rng_state(), state), "loading must not draw from the caller's generator"
    assert not model.training
    assert model.tokenizer is not None
    again = load(run / "checkpoints" / "step-4")
    moved = load(shutil.copytree(run / "checkpoints" / "step-4", tmp_path / "elsewhere"))
    for other in (again, moved):
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(RunError, match="is not a run"):
        load(tmp_path)
    (tmp_path / "young").mkdir()
    shutil.copy(run / "recipe.toml", tmp_path / "young")
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load(tmp_path / "young")
    with pytest.raises(RunError, match="has not been evaluated yet"):
        result(tmp_path / "young")


def test_weights_that_do_not_fit_are_one_line(run: Path) -> None:
    path = run / "checkpoints" / "step-4"
    config = path / "model.json"
    config.write_text(config.read_text().replace('"dim": 32', '"dim": 64'))
    (path / "manifest.json").write_text(_manifest(path))
    with pytest.raises(RunError, match=r"the weights in .* do not fit") as caught:
        load(path)
    assert "\n" not in caught.value.message


def _manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return checkpoint._manifest(path, 4)


REFUSED = {
    "no data": (("data.source=''",), RecipeError, "names no data: set data.source"),
    "missing data": (("data.source=/no/such/text",), DataError, "/no/such/text"),
    "too little data": (("train.batch_size=4000",), DataError, "the training text has .* tokens"),
    "vocabulary": (("model.vocab_size=100",), RecipeError, r"model\.vocab_size \(100\) is smaller than"),
    "tokenizer": (("tokenizer.path=/no/such.json",), DataError, "/no/such.json"),
    "device": (("train.device=mps",), DeviceError, r"no Metal device \(mps\) on this machine"),
    "extra": (("train.tensorboard=true",), ExpertiseError, "train.tensorboard needs packages"),
    "groups": (
        ("balance.device=0.1", "balance.device_groups=9"),
        RecipeError,
        r"balance\.device_groups",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
@pytest.mark.parametrize("do", [train, check], ids=["train", "check"])
def test_what_is_refused_writes_nothing(tmp_path: Path, small_recipe: Make, case: str, do: Any) -> None:
    settings, kind, message = REFUSED[case]
    if case == "device" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    if case == "extra":
        try:
            import tensorboard  # noqa: F401

            pytest.skip("the extra is installed")
        except ImportError:
            pass
    with pytest.raises(kind, match=message) as caught:
        do(small_recipe(*settings), tmp_path / "runs" / "run", quiet)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "runs" / "run").exists()


def test_a_micro_batch_that_is_too_large_is_named_as_the_recipe_names_it(
    tmp_path: Path, small_recipe: Make
) -> None:
    recipe = small_recipe("train.batch_size=8000", "train.accumulation=2")
    with pytest.raises(DataError) as caught:
        train(recipe, tmp_path / "run", quiet)
    assert "(4000)" not in " ".join(caught.value.hints), "train.batch_size is 8000, not 4000"


@pytest.mark.parametrize("do", [train, check], ids=["train", "check"])
def test_a_place_with_other_things_in_it_is_refused(tmp_path: Path, small_recipe: Make, do: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not a run and is not empty"):
        do(small_recipe(), tmp_path, quiet)
    with pytest.raises(RunError, match="is a file, not a folder"):
        do(small_recipe(), tmp_path / "thesis.tex", quiet)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("do", [train, check], ids=["train", "check"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=1e-3", r"optimizer\.learning_rate = 0\.01; the recipe now says 0\.001"),
        ("model.dim=64", r"model\.dim = 32; the recipe now says 64"),
        ("tokenizer.vocab_size=290", r"tokenizer\.vocab_size = 300; the recipe now says 290"),
    ],
)
def test_a_changed_recipe_is_refused_by_name(
    run: Path, small_recipe: Make, setting: str, message: str, do: Any
) -> None:
    before = snapshot(run)
    with pytest.raises(RunError, match=message):
        do(small_recipe(setting, "train.steps=6"), run, quiet)
    assert snapshot(run) == before


def test_a_longer_run_goes_on(run: Path, small_recipe: Make, tmp_path: Path) -> None:
    train(small_recipe("train.steps=6"), run, quiet)
    assert result(run)["step"] == 6
    assert "steps = 6" in (run / "recipe.toml").read_text()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2, 3, 4, 4, 5, 6, 6]
    whole = tmp_path / "whole"
    train(small_recipe("train.steps=6"), whole, quiet)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (whole / "checkpoints" / "step-6" / name).read_bytes() == (
            run / "checkpoints" / "step-6" / name
        ).read_bytes()


def test_checking_trains_nothing_and_writes_nothing(
    run: Path, tmp_path: Path, small_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(run)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("a step was taken"))
    said: list[str] = []
    check(small_recipe("train.steps=9"), run, said.append)
    check(small_recipe(), tmp_path / "new", said.append)
    assert said[-1] == "the recipe is valid"
    assert snapshot(run) == before
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_changed_under_the_run_is_refused(
    run: Path, tmp_path: Path, small_recipe: Make
) -> None:
    """The same path may hold another file: going on would give every id another meaning."""
    given = tmp_path / "given.json"
    shutil.copy(run / "tokenizer.json", given)
    setting = f"tokenizer.path={given}"
    other = tmp_path / "other"
    train(small_recipe("train.steps=2", setting), other, quiet)
    content = json.loads(given.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    by_id = sorted(vocabulary, key=vocabulary.get)
    # Two merged tokens change places: the same size, other text.
    a, b = by_id[-1], by_id[-3]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    given.write_text(json.dumps(content), "utf-8")
    with pytest.raises(RunError, match="tokenizer"):
        train(small_recipe("train.steps=4", setting), other, quiet)


def test_a_rate_that_is_far_too_high_is_called_divergence(tmp_path: Path, small_recipe: Make) -> None:
    recipe = small_recipe("optimizer.learning_rate=1e30", "optimizer.warmup=0", "train.save_every=1")
    with pytest.raises(DivergedError, match=r"^step \d: the .* is not finite$"):
        train(recipe, tmp_path / "run", quiet)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "tpu"])
def test_a_device_that_is_not_here_is_one_line(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve(name)
    assert name in caught.value.message
    assert resolve("cpu") == torch.device("cpu")
    assert resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_bfloat16_trains_and_going_on_is_exact(tmp_path: Path, small_recipe: Make) -> None:
    settings = ("train.bfloat16=true", "train.accumulation=2")
    train(small_recipe(*settings), tmp_path / "whole", quiet)
    train(small_recipe(*settings, "train.steps=2"), tmp_path / "cut", quiet)
    train(small_recipe(*settings), tmp_path / "cut", quiet)
    whole, cut = (
        (tmp_path / name / "checkpoints" / "step-4" / "model.safetensors").read_bytes()
        for name in ("whole", "cut")
    )
    assert whole == cut
