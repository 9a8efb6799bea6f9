"""Conversations by `expertise generate --chat`: files, pipes, a terminal, Ctrl-C, and mistakes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def asked(home: Path, expertise: Any, run_folder: Path) -> str:
    """A model of messages."""
    said = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "red"}] for i in range(40)
    ]
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in said)
    (home / "talk.jsonl").write_text(lines, "utf-8")
    recipe = (home / "small.toml").read_text("utf-8").replace("context = 32", "context = 512")
    start = recipe.index("[data]"), recipe.index("[tokenizer]")
    recipe = recipe[: start[0]] + '[data]\nsource = "talk.jsonl"\nkind = "messages"\n\n' + recipe[start[1] :]
    (home / "talk.toml").write_text(recipe.replace("steps = 6", "steps = 2"), "utf-8")
    done = expertise("train", "talk.toml", "--set", "train.batch_size=2")
    assert done.returncode == 0, done.stderr
    return "runs/talk"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], None]:
    """`says(text)`: what stands on standard input."""

    def give(text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))

    return give


ANSWER = ("-n", "6", "--seed", "0")


def test_a_pipe_is_a_session_and_remembers(asked: str, expertise: Any, says: Any) -> None:
    says("one?\n\ntwo?\n/exit\nthree?\n")
    done = expertise("generate", asked, "--chat", *ANSWER, "--system", "be brief", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [m["role"] for m in found["messages"]] == ["system", *["user", "assistant"] * 2]
    assert found["messages"][3]["content"] == found["prompt"] == "two?"
    assert found["text"] == found["messages"][-1]["content"]
    assert "".join(token["text"] for token in found["tokens"]) == found["text"]
    # The second answer is that to the same messages in a file, and what is shown is what the record says.
    before = json.dumps(found["messages"][:-1])
    says(before)
    again = expertise("generate", asked, "--messages", "-", *ANSWER, "--json")
    assert json.loads(again.stdout)["text"] == found["text"]
    says("one?\ntwo?")
    shown = expertise("generate", asked, "--chat", *ANSWER, "--system", "be brief")
    assert shown.stdout == "".join(f"{found['messages'][i]['content']}\n" for i in (2, 4))


def test_messages_of_a_file_and_a_question_after_them(
    asked: str, home: Path, expertise: Any, says: Any
) -> None:
    said = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "red"}]
    (home / "said.jsonl").write_text("".join(json.dumps(m) + "\n" for m in said), "utf-8")
    first = expertise("generate", asked, "two?", "--messages", "said.jsonl", *ANSWER, "--json")
    says(json.dumps([*said, {"role": "user", "content": "two?"}]))
    second = expertise("generate", asked, "--chat", "--messages", "-", *ANSWER, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["messages"] == json.loads(second.stdout)["messages"]
    alone = expertise("generate", asked, "two?", "--chat", *ANSWER, "--json")
    assert len(json.loads(alone.stdout)["messages"]) == 2


def test_no_line_is_no_answer(asked: str, expertise: Any, says: Any) -> None:
    for text in ("", "\n \n", "/exit\nred?\n"):
        says(text)
        done = expertise("generate", asked, "--chat", *ANSWER)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "given", "named"),
    [
        ([], "", "no text to continue"),
        (["--chat"], b"caf\xe9\n", "line 1 of standard input is not UTF-8"),
        (["--chat"], "x" * 3000, "context holds"),
        (["--messages", "nowhere.json"], "", "nowhere.json"),
        (["--messages", "."], "", "cannot read the messages"),
        (["--messages", "-"], "hello", "standard input, line 1: not valid JSON"),
        (["--messages", "-"], b"[\xff]", "standard input is not UTF-8"),
        (["--messages", "-"], "[]", "nothing to answer"),
        (["--messages", "-"], '[{"role": "usr", "content": "a"}]', "unknown role 'usr'"),
        (
            ["--messages", "-", "--system", "be kind"],
            '[{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]',
            "a system prompt of their own",
        ),
    ],
)
def test_a_mistake_is_one_line(
    asked: str, expertise: Any, says: Any, arguments: list[str], given: str | bytes, named: str
) -> None:
    says(given)
    done = expertise("generate", asked, *arguments, "-n", "2")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert len(lines) <= 4
    assert done.stdout == ""


def test_a_model_without_a_template_is_refused_before_the_first_line(
    run_folder: Path, expertise: Any, says: Any
) -> None:
    says("")
    done = expertise("generate", "run", "--chat")
    assert done.returncode == 2
    assert "no chat template" in done.stderr


def test_an_answer_is_written_while_it_is_made(
    asked: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.cli.main import run
    from expertise.lm import conversation

    out = io.StringIO()
    seen = []

    def pieces(*_: Any, **__: Any) -> Iterator[Any]:
        from expertise.lm.text import Piece

        for word in ("red", " stone", " walks"):
            yield Piece(word, [], True)
            seen.append(out.getvalue())

    monkeypatch.setattr(conversation, "continue_text", pieces)
    monkeypatch.chdir(home)
    with contextlib.redirect_stdout(out):
        assert run(["generate", asked, "one?", "--chat"]) == 0
    assert seen == ["red", "red stone", "red stone walks"]


# The command, but every token that is chosen says "e", and takes its time.
ENDLESS = """
import sys, time, torch
from expertise.cli.main import main
from expertise.lm.generate import Sampling
from expertise.lm.load import load

token = load(sys.argv[2]).tokenizer.token_to_id("e")

def choose(_, logits, before, generator):
    time.sleep(0.01)
    return torch.full_like(before[:, 0], token)

Sampling.choose = choose
main()
"""


class Terminal:
    """A session in a process of its own, at a terminal, whose answers have no end."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.place, other_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, *arguments],
            cwd=home,
            env={**os.environ, "EXPERTISE_CACHE": str(home / "cache"), "TERM": "dumb"},
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
        )
        os.close(other_end)
        self.shown = b""

    def until(self, mark: bytes, after: int = 0, again: signal.Signals | None = None) -> int:
        """Read until a mark comes, and return where it ends.

        Args:
            mark: the bytes to wait for.
            after: only what was shown from here on counts.
            again: sent once a second until the mark comes. The line editor misses a signal that arrives
                while it sets itself up, until the next one.
        """
        end = time.monotonic() + 90
        while mark not in self.shown[after:]:
            assert time.monotonic() < end, self.shown
            if again is not None:
                self.process.send_signal(again)
            if select.select([self.place], [], [], 0.2 if again is None else 1)[0]:
                self.shown += os.read(self.place, 4096)
        return self.shown.index(mark, after) + len(mark)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.place)


def test_ctrl_c_ends_an_answer_and_not_the_session(asked: str, home: Path) -> None:
    """An answer without end is broken off; the next question is answered; `/exit` ends the session."""
    with Terminal(home, "generate", asked, "--chat", "-n", "1000000") as session:
        _break_off_and_leave(session)


def _break_off_and_leave(session: Terminal) -> None:
    at = session.until(b"> ")
    for question in (b"one?", b"two?"):
        os.write(session.place, question + b"\n")
        at = session.until(question + b"\r\n", at)
        session.until(b"ee", at)  # the answer has begun
        session.process.send_signal(signal.SIGINT)
        at = session.until(b"the answer ends here", at)
        at = session.until(b"> ", at)
    at = session.until(b"ends the session", at, again=signal.SIGINT)  # where nothing is being answered
    session.until(b"> ", at)
    os.write(session.place, b"/exit\n")
    assert session.process.wait(60) == 0
    assert b"Traceback" not in session.shown
