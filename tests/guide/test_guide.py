"""Every page of the guide, run as a reader would: shell and Python blocks, in order, in its own folder."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "guide").glob("*.md"))
NEEDS = {"09-policies": ("bullet_safety_gym", "make setup-safety")}
"""Page → the module without which it cannot run, and what installs it."""
SHOWN_ONLY = {"text", "sh no-run", "python no-run"}
_FENCE = re.compile(r"^```(?P<kind>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    kind: str
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    assert f"\n{text}".count("\n```") == 2 * len(_FENCE.findall(text)), f"{page.name}: a fence is not closed"
    return [
        Block(found["kind"].strip(), found["code"], text.count("\n", 0, found.start()) + 2)
        for found in _FENCE.finditer(text)
    ]


def can_run(page: Path) -> bool:
    """Whether what a page needs is installed."""
    return page.stem not in NEEDS or importlib.util.find_spec(NEEDS[page.stem][0]) is not None


def run_page(page: Path, folder: Path, variables: dict[str, str]) -> tuple[str, float]:
    """Run a page's blocks; what went wrong (empty: nothing) and the seconds it took."""
    started = time.monotonic()
    commands = {"sh": ["bash", "-eu", "-o", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for block in blocks_of(page):
        if block.kind not in commands:
            continue
        done = subprocess.run(
            [*commands[block.kind], block.code],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode or "Traceback" in done.stderr:
            where = f"docs/guide/{page.name}, line {block.line}: exit code {done.returncode}"
            return f"{where}\n{block.code}\n{done.stdout}\n{done.stderr}", time.monotonic() - started
    return "", time.monotonic() - started


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[str, float]]]:
    """The result of a page by its name; the chosen pages run side by side, one per core."""
    place = tmp_path_factory.mktemp("guide")
    commands = place / "bin"
    commands.mkdir()
    for name, line in (
        ("expertise", f'exec "{sys.executable}" -m expertise "$@"'),
        ("python", f'exec "{sys.executable}" "$@"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    source = str(Path(importlib.util.find_spec("expertise").origin).parents[1])  # type: ignore[union-attr,arg-type]
    variables = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "EXPERTISE_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    chosen = {
        item.callspec.params["page"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_a_page_runs
    }
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        futures = {}
        for page in sorted(page for page in chosen if can_run(page)):
            shutil.copytree(DOCS / "examples", folder := place / page.stem)
            futures[page.name] = pool.submit(run_page, page, folder, variables)
        yield lambda name: futures[name].result()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page: Path, ran: Callable[[str], tuple[str, float]]) -> None:
    if not can_run(page):
        pytest.skip(f"`{NEEDS[page.stem][1]}` installs what it needs")
    wrong, seconds = ran(page.name)
    assert not wrong, wrong
    assert seconds < 120, f"{page.name} took {seconds:.0f} s: shorten its runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_only_blocks_that_are_run_or_marked(page: Path) -> None:
    blocks = blocks_of(page)
    assert any(block.kind in ("sh", "python") for block in blocks), "a page shows something that runs"
    for block in blocks:
        assert block.kind in SHOWN_ONLY | {"sh", "python", "toml"}, f"line {block.line}: {block.kind!r}"
        if block.kind == "toml":
            tomllib.loads(block.code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_a_block_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    page = tmp_path / "09-wrong.md"
    page.write_text(
        "# Wrong\n\n```sh\necho fine\n```\n\n```text\nfalse\n```\n\n```sh\necho seen\nfalse\n```\n"
    )
    wrong, _ = run_page(page, tmp_path, dict(os.environ))
    assert wrong.startswith("docs/guide/09-wrong.md, line 12: exit code 1\n")
    assert "seen" in wrong
    page.write_text("```sh no-run\nfalse\n```\n")
    assert run_page(page, tmp_path, dict(os.environ))[0] == ""


def test_the_pages_of_keys_are_current() -> None:
    path = DOCS / "make_recipe_keys.py"
    spec = importlib.util.spec_from_file_location("make_recipe_keys", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages = module.pages()
    for name, page in pages.items():
        assert path.with_name(name).read_text("utf-8") == page, "run `make docs`"
    for row in (
        "| `steps`* | integer ≥ 1 |",
        "| `p` | number > 0, ≤ 1 |",
        '## model.router with name = "top_p"',
    ):
        assert row in pages["recipe-keys.md"]
    assert '# kind = "composition"' in pages["policy-recipe-keys.md"]
