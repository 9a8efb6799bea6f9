"""Commands as a user runs them, without a process."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def expertise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`expertise("policy", …)`: run a command in the test's folder."""
    from expertise.cli.main import run as command

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(list(arguments))
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    monkeypatch.chdir(tmp_path)
    return run
