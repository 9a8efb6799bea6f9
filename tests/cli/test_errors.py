"""Every mistake is one clear line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Kind of mistake → setting (or a whole recipe), the line that names it, what its hints must hold.
MISTAKES: dict[str, tuple[str, str, str]] = {
    "unknown key": ("train.batchsize=3", "unknown key train.batchsize", "did you mean 'batch_size'?"),
    "unknown table": ("modle.dim=3", "unknown key modle", "did you mean 'model'?"),
    "unknown router": ("model.router.name=top_q", "model.router.name: unknown 'top_q'", "did you mean 'top_"),
    "broken TOML": ("\n[model\ndim = 3", "bad.toml is not valid TOML: ", ""),
    "empty": ("\n", "bad.toml is empty", "`expertise recipes demo` prints one to start from"),
    "missing source": ("data.source=nowhere/at-all", "the source nowhere/at-all does not exist", "starts at"),
    "wrong type": ("model.dim=thirty", "model.dim: input should be a whole number, not 'thirty'", ""),
    "out of range": ("train.steps=0", "train.steps: input should be at least 1, not 0", ""),
    "k over the parts": (
        "model.router={name='top_k', k=5}",
        "k (5)",
        "",
    ),
    "p is 0": ("model.router.p=0", "model.router.p: input should be greater than 0, not 0", ""),
    "p over 1": ("model.router.p=1.01", "model.router.p: ", ""),
    "heads": ("model.num_heads=3", "model.dim (32) is not a multiple of model.num_heads (3)", ""),
}


def arguments_of(mistake: str, folder: Path) -> list[str]:
    """A `train` command with this mistake, whose recipe stands in the folder where one has to be written."""
    text, _, _ = MISTAKES[mistake]
    if not text.startswith("\n"):
        return ["train", "small.toml", "--out", "runs/refused", "--set", text]
    (folder / "bad.toml").write_text(text)
    return ["train", str(folder / "bad.toml"), "--out", "runs/refused"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_kind_of_mistake_is_named(home: Path, expertise, tmp_path: Path, mistake: str) -> None:
    before = sorted(home.rglob("*"))
    done = expertise(*arguments_of(mistake, tmp_path))
    refused(done, *MISTAKES[mistake][1:])
    assert done.stdout == ""
    assert sorted(home.rglob("*")) == before, "nothing is written, not even a folder"


@pytest.mark.parametrize(
    "mistakes",
    [
        ["unknown key", "broken TOML", "missing source", "p over 1"],
        pytest.param(list(MISTAKES), marks=[pytest.mark.faults, pytest.mark.slow]),
    ],
    ids=["some", "all"],
)
def test_mistakes_as_processes_of_their_own(home: Path, tmp_path: Path, mistakes: list[str]) -> None:
    """All at once: most of the time goes into starting Python and importing torch."""
    variables = {**os.environ, "EXPERTISE_CACHE": str(home / "cache"), "PYTHONWARNINGS": "error"}
    before = sorted(home.rglob("*"))

    def begin(mistake: str) -> subprocess.Popen[str]:
        (folder := tmp_path / mistake).mkdir()
        command = [sys.executable, "-m", "expertise", *arguments_of(mistake, folder)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=home, env=variables, stdout=pipe, stderr=pipe, text=True)

    started = {mistake: begin(mistake) for mistake in mistakes}
    ended = {mistake: (*process.communicate(), process.returncode) for mistake, process in started.items()}
    for mistake, (out, err, code) in ended.items():
        refused(subprocess.CompletedProcess([], code, out, err), *MISTAKES[mistake][1:])
        assert err.startswith("error: "), "nothing else is said"
        assert out == ""
    assert sorted(home.rglob("*")) == before


SETTINGS = [
    ("train.batchsize=3", "train.batchsize", "batch_size"),
    ("modle.dim=3", "modle", "model"),
    ("model.router.pp=0.3", "model.router.pp", "p"),
    ("model.router.name=top_q", "top_q", "top_p"),
    ("model.router.p=1.5", "model.router.p", ""),
    ("model.router.p=0", "model.router.p", ""),
    ("model.router.max_parts=9", "max_parts", ""),
    ("model.dim=thirty", "model.dim", ""),
    ("model.dim=33", "model.dim", ""),
    ("model.parts.num_parts=0", "model.parts.num_parts", ""),
    ("train.steps=-1", "train.steps", ""),
    ("train.device=tpu", "train.device", ""),
    ("train.batch_size=100000", "training text", "train.batch_size"),
    ("data.source=", "data", "data.source"),
    ("data.source=nowhere", "nowhere", ""),
    ("balance.per=token", "balance.per", ""),
    ("model.router={name='hash'}", "balance.expert", "leave balance.expert out"),
    ("model.router={name='context', context_dim=2}", "context vector", ""),
    ("model.router.bias_step=-1", "model.router.bias_step", ""),
    ("model.router.scores=tanh", "model.router.scores", ""),
    ("steps", "steps", "key=value"),
    ("tokenizer.vocab_size=10", "tokenizer.vocab_size", ""),
]


@pytest.mark.parametrize(("setting", "named", "hint"), SETTINGS)
def test_a_mistake_in_a_recipe(home: Path, expertise, setting: str, named: str, hint: str) -> None:
    done = expertise("train", "small.toml", "--out", "refused", "--set", setting)
    refused(done, named, hint)
    assert not (home / "refused").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [("", "empty"), ("[model\n", "TOML"), ("[model]\ndim = 32\n", "data"), ("x = 1\n", "x")],
)
def test_a_recipe_that_is_none(home: Path, expertise, content: str, named: str) -> None:
    (home / "bad.toml").write_text(content)
    refused(expertise("train", "bad.toml", "--out", "refused"), named)
    assert not (home / "refused").exists()


def test_a_recipe_that_is_not_there(expertise) -> None:
    refused(expertise("train", "dmeo"), "dmeo", "demo")
    refused(expertise("train", "missing.toml"), "missing.toml")
    refused(expertise("recipes", "dmeo"), "dmeo", "demo")


@pytest.mark.parametrize(
    "name", ["deepseekmoe-2b", "deepseekmoe-145b", "llama2-7b-shape", "dynamic-moe-3.5b"]
)
def test_a_published_recipe_wants_its_data_named(home: Path, expertise, name: str) -> None:
    for more in ([], ["--check"]):
        done = expertise("train", name, *more)
        refused(done, "the recipe names no data: set data.source")
        assert done.stdout == ""
    assert not (home / "runs" / name).exists()


def test_what_cannot_be_planned(expertise) -> None:
    refused(expertise("plan", "deepseekmoe-2"), "deepseekmoe-2", "deepseekmoe-2b")
    refused(expertise("plan", "demo", "missing.toml"), "missing.toml")
    refused(expertise("plan", "demo", "--set", "model.dims=3"), "model.dims", "dim")
    assert expertise("plan").returncode == 2


def test_a_source_that_cannot_be_read(home: Path, expertise) -> None:
    (home / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 100)
    refused(
        expertise("train", "small.toml", "--out", "refused", "--set", "data.source=latin.txt"), "latin.txt"
    )
    (home / "nothing").mkdir(exist_ok=True)
    refused(expertise("train", "small.toml", "--out", "refused", "--set", "data.source=nothing"), "nothing")
    (home / "tiny.txt").write_text("too little\n")
    refused(expertise("train", "small.toml", "--out", "refused", "--set", "data.source=tiny.txt"), "tokens")
    assert not (home / "refused").exists()


def test_a_folder_that_is_no_run(home: Path, expertise, run_folder: Path) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "thesis.tex").write_text("years of work")
    refused(expertise("train", "small.toml", "--out", "mine"), "mine", "--out")
    for command in (["evaluate"], ["inspect"], ["generate", "x"]):
        refused(expertise(command[0], "mine", *command[1:]), "mine")
        refused(expertise(command[0], "absent", *command[1:]), "absent")
    assert [path.name for path in (home / "mine").iterdir()] == ["thesis.tex"]


def test_a_changed_recipe_is_refused_by_name(home: Path, expertise, run_folder: Path) -> None:
    done = expertise("train", "small.toml", "--out", "run", "--set", "optimizer.learning_rate=0.5")
    refused(done, "optimizer.learning_rate")
    assert "0.01" in done.stderr
    assert "0.5" in done.stderr


def test_changed_text_is_refused(home: Path, expertise, run_folder: Path) -> None:
    shutil.copytree(home / "text", home / "other")
    shutil.copytree(run_folder, home / "stale")
    recipe = (home / "stale" / "recipe.toml").read_text().replace(str(home / "text"), str(home / "other"))
    (home / "stale" / "recipe.toml").write_text(recipe)
    (home / "other" / "prose" / "0.txt").write_text("Something else stands here now.\n" * 30)
    refused(expertise("train", "stale/recipe.toml", "--out", "stale"), "the text has changed", "init=stale")
    shutil.rmtree(home / "stale" / "held-out")  # as in runs of before it was kept
    refused(expertise("evaluate", "stale"), "the text has changed", "init=stale")
    refused(expertise("inspect", "stale"), "the text has changed", "init=stale")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "run", ""],
        ["generate", "run", "red " * 200],
        ["generate", "run", "red", "--top-p", "2"],
        ["generate", "run", "red", "--show", "part"],
        ["generate", "run", "red", "--stop", "several tokens here"],
        ["evaluate", "run", "--split", "train"],
        ["evaluate", "run", "--device", "cuda:x"],
        ["inspect"],
        ["trian", "demo"],
        ["train"],
    ],
)
def test_wrong_arguments(run_folder: Path, expertise, arguments: list[str]) -> None:
    done = expertise(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_may_not_be_written(home: Path, expertise) -> None:
    place = home / "readonly"
    place.mkdir()
    place.chmod(0o555)
    try:
        if os.access(place, os.W_OK):
            pytest.skip("root may write everywhere")
        refused(expertise("train", "small.toml", "--out", "readonly/run"), "readonly")
    finally:
        place.chmod(0o755)


def test_an_output_path_through_a_file(home: Path, expertise) -> None:
    (home / "file").write_text("")
    refused(expertise("train", "small.toml", "--out", "file/run"), "file")
    refused(expertise("train", "small.toml", "--out", "file"), "file")


def refused(done, named: str, hint: str = "") -> None:
    """Exit code 2; one line that names the mistake and at most three of hint; no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("error: "))
    assert named in lines[first], done.stderr
    assert len(lines[first:]) <= 4, done.stderr
    assert hint in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("switches", "named"),
    [
        (("--k", "2"), "'top_p' router has no k"),
        (("--p", "1.5"), "p must lie in (0, 1], not 1.5"),
        (("--mask-top", "1"), "mask_top must lie in [0, 1), not 1.0"),
        (("--mask-top", "0.9"), "too few"),
        (("--renew-softmax",), "renew_softmax needs mask_top"),
        (("--extra-parts", "-1"), "extra_parts must be 0 or more, not -1"),
    ],
)
def test_switches_that_make_no_sense(
    run_folder: Path, expertise, switches: tuple[str, ...], named: str
) -> None:
    refused(expertise("evaluate", "run", *switches), named)
