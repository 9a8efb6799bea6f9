"""A small text, a small recipe, and the command as a user runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

RECIPE = """
[data]
source = {source}

[tokenizer]
vocab_size = 300

[model]
dim = 32
num_layers = 2
num_heads = 2
context = 32

[model.router]
name = "top_p"
p = 0.4
max_parts = 3

[model.parts]
num_parts = 4
hidden = 16

[model.always]
hidden = 16

[balance]
expert = 0.01
entropy = 1e-3

[optimizer]
learning_rate = 1e-2

[train]
steps = 6
batch_size = 4
evaluate_every = 3
save_every = 3
log_every = 1
threads = 1

[evaluation]
bytes_per_domain = 2000
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text of two domains and a recipe, shared by all tests of commands."""
    folder = tmp_path_factory.mktemp("home")
    words = ["red", "green", "blue", "stone", "river", "walks", "sings", "quietly", "and", "then"]
    dice = random.Random(0)
    for domain, ending in (("prose", "."), ("code", "();")):
        (folder / "text" / domain).mkdir(parents=True)
        for number in range(24):
            lines = [" ".join(dice.choices(words, k=7)) + ending for _ in range(20)]
            (folder / "text" / domain / f"{number}.txt").write_text("\n\n".join(lines), "utf-8")
    source = [{"path": str(folder / "text" / d), "domain": d} for d in ("prose", "code")]
    tables = ", ".join(f'{{path = {json.dumps(s["path"])}, domain = "{s["domain"]}"}}' for s in source)
    (folder / "small.toml").write_text(RECIPE.format(source=f"[{tables}]"), "utf-8")
    return folder


@pytest.fixture(scope="session")
def expertise_in(home: Path) -> Callable[[Path], Command]:
    """`expertise_in(folder)`: run commands there, as `python -m expertise …` would, but without a process."""

    def command_in(folder: Path) -> Command:
        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            from expertise.cli.main import run as command

            out, err = io.StringIO(), io.StringIO()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("EXPERTISE_CACHE", str(home / "cache"))
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    code = command(list(arguments))
            return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

        return run

    return command_in


@pytest.fixture(scope="session")
def expertise(home: Path, expertise_in: Callable[[Path], Command]) -> Command:
    """Run a command in the folder that the tests of commands share."""
    return expertise_in(home)


@pytest.fixture(scope="session")
def process(home: Path) -> Command:
    """Run `python -m expertise …` in the folder, with warnings as errors."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "EXPERTISE_CACHE": str(home / "cache"), "PYTHONWARNINGS": "error"}
        command = [sys.executable, "-m", "expertise", *arguments]
        return subprocess.run(
            command, cwd=home, env=variables, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(scope="session")
def run_folder(home: Path, expertise: Command) -> Path:
    """A finished small run."""
    done = expertise("train", "small.toml", "--out", "run")
    assert done.returncode == 0, done.stderr
    return home / "run"
