"""Paths and prompts as a shell gives them: bytes that are not UTF-8, and `~` that the shell left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from expertise.cli.main import COMMANDS
from expertise.cli.options import data_settings
from expertise.errors import RecipeError
from expertise.registry import Registry
from expertise.runs import recipe as recipes
from expertise.runs.files import escaped, require_utf8, write_atomic


def commands(table: Registry, *group: str) -> Iterator[tuple[str, ...]]:
    """Every command, by its words."""
    for name, entry in table.items():
        if isinstance(entry, Registry):
            yield from commands(entry, *group, name)
        else:
            yield (*group, name)


@pytest.mark.parametrize("word", ["caf\udce9", "--out=caf\udce9", "--set=data.source=\udcff", "--caf\udce9"])
def test_no_command_takes_an_argument_that_is_not_utf8(home: Path, expertise, word: str) -> None:
    before = sorted(home.rglob("*"))
    for command in commands(COMMANDS):
        done = expertise(*command, word)
        assert done.returncode == 2, command
        lines = done.stderr.splitlines()
        assert lines[0].startswith("error: "), command
        assert "is not UTF-8" in lines[0], command
        assert "\\xe9" in lines[0] or "\\xff" in lines[0]
        assert len(lines) <= 4
    assert sorted(home.rglob("*")) == before


def test_a_prompt_that_is_not_utf8_in_a_process_of_its_own(home: Path) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"expertise", b"generate", b"run", b"caf\xe9"]
    done = subprocess.run(command, cwd=home, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the argument 'caf\\xe9' is not UTF-8")


def test_a_folder_that_is_not_utf8_can_be_worked_in(home: Path, tmp_path: Path) -> None:
    """Nothing that the user gave is at fault: what is printed of it is escaped."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    command = [sys.executable, "-m", "expertise", "train", str(home / "small.toml"), "--check", "--json"]
    variables = {**os.environ, "EXPERTISE_CACHE": str(home / "cache")}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_name_too_long_for_a_file_is_a_mistake(expertise) -> None:
    for command in (["train"], ["evaluate"], ["inspect"], ["generate", "x"], ["skill", "list", "--library"]):
        done = expertise(*command[:1], "a" * 300, *command[1:]) if len(command) < 3 else None
        done = done or expertise(*command, "a" * 300)
        assert done.returncode == 2, (command, done.stderr)
        assert done.stderr.startswith("error: ")


def test_the_home_folder_in_paths_of_commands(
    home: Path, expertise, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert expertise("evaluate", "~/run", "--json").returncode == 0
    assert expertise("generate", "~/run", "red", "-n", "1").returncode == 0
    shutil.copytree(run_folder, home / "seen")
    assert expertise("inspect", "~/seen").returncode == 0
    assert expertise("plan", "~/small.toml").returncode == 0
    done = expertise("train", "~/small.toml", "--out=~/run")
    assert done.returncode == 0, done.stderr
    assert not (home / "~").exists()
    done = expertise("train", "small.toml", "--check", "--out=~/new", "--set", "init=~/run")
    assert done.returncode == 0, done.stderr
    assert "no library at ~" not in expertise("skill", "list", "--library=~/none").stderr
    assert f"no library at {home / 'none'}" in expertise("skill", "list", "--library=~/none").stderr
    for words in (["export", "~/none", "--to", "onnx", "--out", "x"], ["evaluate", "a=~/none", "--env", "b"]):
        assert "~" not in expertise("policy", *words).stderr
    assert f"{home / 'none'}" in expertise("skill", "learn", "~/none", "--data=x", "--name", "a").stderr


def test_a_prompt_is_no_path(home: Path, expertise, run_folder: Path) -> None:
    done = expertise("generate", "run", "~/red", "-n", "1")
    assert done.stdout.startswith("~/red")


def test_text_that_no_file_takes_names_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is not UTF-8"):
        write_atomic(tmp_path / "notes.json", '{"base": "/home/caf\udce9"}')
    assert list(tmp_path.iterdir()) == []
    for text in ("caf\udce9", "\ud83d", "\udc00\ud800"):
        assert escaped(text).isascii()
        with pytest.raises(RecipeError, match=r"^the prompt .* is not UTF-8"):
            require_utf8(text, "the prompt")
    assert require_utf8("größer 🙂", "the prompt") == escaped("größer 🙂")


@pytest.mark.parametrize("words", [["--set", "train.steps", "5"], ["--set", "a"], ["--set", "a", "=", "b"]])
def test_a_setting_in_two_words_is_told_how_to_be_one(home: Path, expertise, words: list[str]) -> None:
    for command in (["train", "small.toml"], ["plan", "small.toml"], ["policy", "learn", "policy-base"]):
        done = expertise(*command, *words)
        assert done.returncode == 2
        assert f"--set {words[1]}=VALUE" in done.stderr, done.stderr
        assert "unexpected extra argument" not in done.stderr


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example("🙂/a \"b\" 'c'\n\\d\x7f\x00é\u2028")
@settings(max_examples=50, deadline=None)
def test_a_path_reaches_the_recipe_as_it_was_given(text: str) -> None:
    values = recipes.override({}, data_settings(text, None, [text, "x"]))
    assert values == {"data": {"source": text, "domains": [text, "x"]}}


def test_text_in_a_folder_with_an_emoji(home: Path, expertise, run_folder: Path) -> None:
    (home / "🙂 'a'").mkdir()
    (home / "🙂 'a'" / "b.txt").write_text("red stone walks and then sings.\n\n" * 200, "utf-8")
    done = expertise("evaluate", "run", "--data", "🙂 'a'")
    assert done.returncode == 0, done.stderr
