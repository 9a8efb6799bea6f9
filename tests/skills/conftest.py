"""Bases to adapt, adapters that PEFT itself made for them, and processes that can be killed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Under pytest's `importlib` mode a folder of tests is on no path: this makes plain modules importable, ours
# and the one that knows how to damage files and kill processes.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "runs")]


@pytest.fixture
def peft_adapter(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`peft_adapter(base, seed, r=…, …)`: a folder that PEFT saved, and PEFT's model of it."""
    from judges import randomised

    def make(base: Any, seed: int = 0, **config: Any) -> tuple[Path, Any]:
        model = randomised(base, seed, **config)
        folder = tmp_path / f"adapter-{seed}"
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Any]]:
    """`start(target, …)`: a function of `writers` in a process of its own."""
    from faulty import forked

    yield from forked()
