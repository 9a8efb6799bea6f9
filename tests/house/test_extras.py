"""What the extras of pyproject.toml ask for is used."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "benchmarks", "reproduce", "docs")
UNIMPORTED = {
    "imageio-ffmpeg": "imageio imports it to write MP4",
    "mypy": "a command (make types)",
    "pytest-xdist": "a plugin of pytest (-n)",
    "ruff": "a command (make lint)",
}
"""Packages that nothing here imports, with the reason why they are installed."""


def test_every_package_of_an_extra_is_imported_somewhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    texts = [path.read_text("utf-8") for path in files if path != Path(__file__)]
    names = {
        re.split(r"[\[<>=]", requirement)[0]
        for requirements in extras.values()
        for requirement in requirements
    }
    unused = set()
    for name in names:
        module = re.escape(name.replace("-", "_"))
        # `import x`, `from x import`, or the name of a module given to a function that imports it.
        pattern = re.compile(rf"^\s*(?:import|from) {module}\b|[\"']{module}(?:\.[\w.]+)?[\"']", re.MULTILINE)
        if not any(pattern.search(text) for text in texts):
            unused.add(name)
    assert unused == set(UNIMPORTED)
