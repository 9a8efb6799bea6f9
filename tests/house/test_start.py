"""A mistake is told at once: what names alone can refuse is refused before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """
data = { source = "text" }
tokenizer = { vocab_size = 300 }
optimizer = { learning_rate = 1e-2 }
train = { steps = 2, batch_size = 2 }

[model]
dim = 32
num_layers = 2
num_heads = 2
context = 32
router = { name = "top_p", p = 0.4 }
parts = { num_parts = 4, hidden = 16 }
"""

REFUSED = {
    "train dmeo": "did you mean 'demo'",
    "train nowhere.toml": "no recipe at",
    "train small.toml --set train.stepz=3": "unknown key train.stepz",
    "train small.toml --set modl.dim=3": "unknown key modl",
    "train small.toml --set train.steps=many": "whole number",
    "train small.toml --set model.dim=33": "not a multiple",
    "train small.toml --set model.router.pp=1": "unknown key model.router.pp",
    "train small.toml --set model.router.p=1.5": "at most 1",
    "train small.toml --set model.router.name=top_q": "top_q",
    "train small.toml --set model.parts.num_parts=0": "at least 1",
    "train small.toml --set model.router={name='top_k',k=9}": "k (9)",
    "train small.toml --set data.source=nowhere": "does not exist",
    "train small.toml --set data.validation=nowhere": "does not exist",
    "train small.toml --set tokenizer.path=nowhere.json": "nowhere.json",
    "train small.toml --set init=nowhere": "init: no run at nowhere",
    "train small.toml --set train.device=tpu": "train.device",
    "train small.toml --out text": "is not a run",
    "train small.toml --set train.steps 5": "--set train.steps=VALUE",
    "train policy-base": "recipe of policies",
    "train deepseekmoe-2b": "names no data",
    "demo --set model.dimm=3": "unknown key model.dimm",
    "plan small.toml --set model.dimm=3": "unknown key model.dimm",
    "evaluate nowhere": "no model at nowhere",
    "evaluate text": "holds no model",
    "evaluate run --data nowhere": "does not exist",
    "generate nowhere x": "no model at nowhere",
    "generate run x --show part": "cannot show",
    "inspect nowhere": "no run at nowhere",
    "skill learn nowhere --data text --name a": "no model at nowhere",
    "skill learn run --data nowhere --name a": "does not exist",
    "skill compose run --skills a --weights 1 --out b": "no library at skills",
    "skill compose run --skills a --weights one --out b": "is not numbers",
    "skill report nowhere": "no composed model at nowhere",
    "skill list": "no library at skills",
    "skill show a": "no library at skills",
    "skill rename a b": "no library at skills",
    "skill remove a --yes": "no library at skills",
    "skill merge a b --name c": "no library at skills",
    "skill compare": "no library at skills",
    "skill export a --out b": "no library at skills",
    "skill verify": "no library at skills",
    "skill import nowhere": "no adapter at nowhere",
    "evaluate run --split tes": "did you mean 'test'",
    "train small.toml --set tokenizer.path=text": "it is a folder",
    "skill add nowhere": "no skill at nowhere",
    "skill import text --base nowhere": "no model at nowhere",
    "policy learn polcy-base": "did you mean 'policy-base'",
    "policy learn small.toml": "lacks kind",
    "policy learn policy-base --set kind=polcy": "did you mean 'policy'",
    "policy collect nowhere.toml --out x": "no recipe at",
    "policy evaluate nowhere --environment bullet/BallRun": "no policy at nowhere",
    "policy evaluate run --environment bullet/BallRun --seeds a": "--seeds",
    "policy export nowhere --to onnx --out x": "no policy at nowhere",
    "policy compose --base nowhere --run x --skill a --weights 1": "no policy at nowhere",
}
"""Command → what its refusal says."""

HELP = ["", "train", "evaluate", "generate", "plan", "skill", "skill learn", "policy", "policy compose"]

CODE = """
import json, sys, contextlib, io
from expertise.cli.main import run
found = {}
for command in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(command.split())
    heavy = sorted({"torch", "transformers", "tokenizers"} & set(sys.modules))
    found[command] = [code, err.getvalue(), heavy]
    if heavy:
        break
print(json.dumps(found))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some text\n" * 100)
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(RECIPE)
    return tmp_path


def said(folder: Path, commands: list[str]) -> dict[str, tuple[int, str, list[str]]]:
    """Command → exit code, standard error, heavy libraries that were loaded by then; all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {command: tuple(found) for command, found in json.loads(done.stdout).items()}


def test_what_names_alone_can_refuse_is_refused_before_torch(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for command, (code, error, heavy) in said(folder, list(REFUSED)).items():
        assert code == 2, (command, error)
        assert REFUSED[command] in error, (command, error)
        assert not heavy, command
    assert sorted(folder.rglob("*")) == before


def test_every_help_is_given_without_torch(folder: Path) -> None:
    commands = [f"{group} --help".strip() for group in HELP]
    found = said(folder, commands)
    assert list(found) == commands
    for command, (code, _, heavy) in found.items():
        assert code == 0, command
        assert not heavy, command
