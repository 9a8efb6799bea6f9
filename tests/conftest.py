"""One cache for all tests, a small text, and the recipe of a tiny model on it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own cache."""
    before = os.environ.get("EXPERTISE_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EXPERTISE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EXPERTISE_CACHE"]
    else:
        os.environ["EXPERTISE_CACHE"] = before


def write_text(folder: Path, seed: int = 0) -> Path:
    """Two domains of 24 short files, the same for the same seed."""
    dice = random.Random(seed)
    words = {
        "prose": ["the", "red", "stone", "walks", "slowly", "über", "a", "green", "river", "then", "sings"],
        "code": ["def", "return", "self.x", "x", "+=", "1", "for", "in", "range(", "):", "None", "not"],
    }
    for domain, stock in words.items():
        (folder / domain).mkdir(parents=True)
        for number in range(24):
            lines = [" ".join(dice.choices(stock, k=dice.randint(4, 12))) for _ in range(30)]
            (folder / domain / f"{number:02}.txt").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text; who changes it must copy it first."""
    return write_text(tmp_path_factory.mktemp("text") / "small")


@pytest.fixture(scope="session")
def small_values(small_text: Path) -> dict[str, Any]:
    """A recipe's tables: two layers of width 32, top-p."""
    return {
        "data": {"source": str(small_text)},
        "tokenizer": {"vocab_size": 300},
        "model": {
            "dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "context": 32,
            "router": {"name": "top_p", "p": 0.4, "max_parts": 3},
            "parts": {"num_parts": 4, "hidden": 16},
            "always": {"hidden": 16},
        },
        "balance": {"expert": 0.01, "entropy": 1e-3},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 2},
        "train": {"steps": 4, "batch_size": 4, "log_every": 1, "threads": 1, "device": "cpu"},
        "evaluation": {"bytes_per_domain": 400},
    }


@pytest.fixture(scope="session")
def small_recipe(small_values: dict[str, Any]) -> Callable[..., Any]:
    """`small_recipe("train.steps=8", …)`: the small recipe with settings applied."""
    from expertise.lm.recipe import Recipe
    from expertise.runs import recipe as recipes

    def make(*settings: str) -> Recipe:
        return recipes.build(recipes.override(small_values, settings), Recipe)

    return make


@pytest.fixture
def same_threads() -> Iterator[None]:
    """Recipes set the number of threads: put it back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may mount one."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


_CHROMIUM = shutil.which("chromium")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that ask for it are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page is not opened"
    )
    if _CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed: the page is not opened")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=_CHROMIUM, args=_QUIET)
        yield opened
        opened.close()
