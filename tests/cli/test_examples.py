"""`--check --show N`: what would be learnt, in colours on a terminal, in brackets elsewhere, as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

LEARN = ("skill", "learn", "run", "--data", "asked.jsonl", "--kind", "prompt", "--name", "shown")


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def asked(home: Path) -> None:
    rows = [{"prompt": f"Q: red {i}?\nA:", "completion": f" [blue] {i} :smile:\x1b[31m"} for i in range(40)]
    rows[0]["completion"] += " and so on" * 30
    (home / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    recipe = (home / "small.toml").read_text("utf-8")
    start = recipe.index("[data]"), recipe.index("[tokenizer]")
    data = '[data]\nsource = "asked.jsonl"\nkind = "prompt"\n\n'
    (home / "asked.toml").write_text(recipe[: start[0]] + data + recipe[start[1] :], "utf-8")


def check(expertise: Any, *arguments: str) -> str:
    done = expertise(*arguments, "--check", "--show", "3")
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("pack", ["documents", "stream"])
def test_brackets_say_what_is_learnt(expertise: Any, home: Path, pack: str) -> None:
    arguments = ("train", "asked.toml", "--out", "unmade", "--set", f"data.pack={pack}")
    shown = check(expertise, *arguments)
    found = json.loads(check(expertise, *arguments, "--json"))
    assert found["valid"] is True
    assert len(found["examples"]) == 3
    learnt = re.findall(r"\[\[(.*?)\]\]", shown, re.DOTALL)[1:]  # the first is the legend's
    expected = []
    for example in found["examples"]:
        for document in example["documents"]:
            text, before = "", False
            for token in [*document, {"learnt": False, "text": ""}]:
                if before and not token["learnt"]:
                    expected.append(text.replace("\x1b", "\\x1b"))
                    text = ""
                before = token["learnt"]
                text += token["text"] if before else ""
    assert learnt == expected
    assert any(":smile:" in text for text in learnt)
    assert "\x1b" not in shown, "a text must not act on the terminal"
    assert not any("Q:" in text for text in learnt)
    assert not (home / "unmade").exists()


def test_padding_and_the_end_of_a_window_are_said(expertise: Any) -> None:
    shown = expertise("train", "asked.toml", "--check", "--show", "1000", "--out", "unmade").stdout
    assert "padding: " in shown
    assert "the window is full" in shown, "of the record that is cut"
    assert "<|endoftext|>]]" in shown


def test_colours_on_a_terminal_unless_nobody_wants_them(
    home: Path, expertise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.cli.main import run

    monkeypatch.chdir(home)
    monkeypatch.setenv("EXPERTISE_CACHE", str(home / "cache"))
    monkeypatch.setenv("TERM", "xterm-256color")
    arguments = ["train", "asked.toml", "--check", "--show", "2", "--out", "unmade"]
    shown = {}
    for wanted in ("", "1"):
        monkeypatch.setenv("NO_COLOR", wanted)
        with contextlib.redirect_stdout(Screen()) as screen:
            assert run(list(arguments)) == 0
        shown[wanted] = screen.getvalue()
    assert "\x1b[" in shown[""]
    assert "[[" not in shown[""]
    assert "\x1b" not in shown["1"]
    plain = expertise(*arguments).stdout
    assert shown["1"] == plain
    assert re.sub(r"\x1b\[[0-9;]*m|⏎", "", shown[""]) == plain.replace("[[", "").replace("]]", "")


def test_a_skill_shows_its_data_too(home: Path, expertise: Any, run_folder: Path) -> None:
    before = (home / "skills").exists()  # another test's
    shown = check(expertise, *LEARN, "--threads", "1")
    assert "[[ [blue] " in shown
    found = json.loads(check(expertise, *LEARN, "--threads", "1", "--json"))
    assert found["valid"] is True
    assert len(found["examples"]) == 3
    assert (home / "skills").exists() == before
    assert not (home / "runs" / "skill-shown").exists()


def test_mistakes_of_a_check_are_those_of_the_training(home: Path, expertise: Any, run_folder: Path) -> None:
    for arguments, named in (
        (("train", "asked.toml", "--show", "2"), "--show goes with --check"),
        ((*LEARN, "--show", "2"), "--show goes with --check"),
        ((*LEARN, "--check", "--work", "text"), "--work"),
        ((*LEARN, "--check", "--set", "context=9999"), "context"),
        ((*LEARN[:-1], "a/b", "--check"), "a/b"),
    ):
        done = expertise(*arguments)
        assert done.returncode == 2, arguments
        assert named in done.stderr
        assert len(done.stderr.split("error: ")[1].strip().splitlines()) <= 4
    assert expertise("train", "asked.toml", "--check", "--show", "0").returncode == 2
