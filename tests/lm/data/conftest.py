"""Every test has its own cache; `write` makes small sources."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

Write = Callable[[str, str | bytes], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("EXPERTISE_CACHE", str(root))
    return root


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


@pytest.fixture
def corpus(write: Write, tmp_path: Path) -> Path:
    """A folder of two domains, 40 short files each, no paragraph twice."""
    for domain in ("birds", "stones"):
        for i in range(40):
            lines = [
                f"The {domain} of valley {i * 100 + j} were counted on day {j * 7 + i}." for j in range(30)
            ]
            write(f"corpus/{domain}/{i:02}.txt", "\n\n".join(lines) + "\n")
    return tmp_path / "corpus"
