"""The import arrow of the architecture, and that nothing heavy is loaded before it is used."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import expertise

SOURCE = Path(expertise.__file__).parent

# Each package with what it may import besides itself; `foundation` is errors, registry, shapes and the root.
FOUNDATION = {"", "errors", "lazy", "registry", "shapes"}
ARROW = {
    "runs": FOUNDATION,
    "mixture": FOUNDATION,
    "skills": FOUNDATION | {"runs", "mixture"},
    "lm": FOUNDATION | {"runs", "mixture", "skills"},
    "policy": FOUNDATION | {"runs", "mixture", "skills"},
    "report": FOUNDATION | {"runs", "mixture", "skills", "lm", "policy"},
    "cli": FOUNDATION | {"runs", "mixture", "skills", "lm", "policy", "report"},
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """First component below `expertise` of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "expertise":
                names = [f"expertise.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "expertise":
                found.add(rest.split(".")[0])
    return found - {"__version__"}


@pytest.mark.parametrize("package", ARROW)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    for path in sorted((SOURCE / package).rglob("*.py")):
        foreign = imported(path) - ARROW[package] - {package}
        assert not foreign, f"{path.relative_to(SOURCE)} imports {foreign}"


def test_every_package_is_on_the_arrow() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages == set(ARROW)


def test_a_user_of_the_mixture_needs_neither_pydantic_nor_the_language_model() -> None:
    loaded = loaded_by("import expertise.mixture")
    assert not loaded & {
        "pydantic",
        "jaxtyping",
        "beartype",
        "tokenizers",
        "expertise.lm",
        "expertise.runs.loop",
    }


def test_a_user_of_skills_needs_no_library_of_other_peoples_models() -> None:
    heavy = {"peft", "transformers", "pydantic", "matplotlib", "tokenizers", "expertise.lm"}
    assert not loaded_by("from expertise.skills import *") & heavy


def test_what_a_library_holds_is_read_without_torch() -> None:
    assert not loaded_by("import expertise.skills.folders") & {"torch", "numpy", "safetensors", "filelock"}


def test_no_module_of_skills_hides_a_public_name() -> None:
    import expertise.skills

    assert not {path.stem for path in (SOURCE / "skills").glob("*.py")} & set(expertise.skills.__all__)
    listed = [name for names in expertise.skills._HOMES.values() for name in names]
    assert sorted(listed) == sorted(expertise.skills.__all__)


def test_importing_the_package_and_asking_for_help_load_no_torch() -> None:
    assert "torch" not in loaded_by("import expertise")
    code = (
        "import sys; from expertise.cli.main import run; sys.stdout = open('/dev/null', 'w'); run(['--help'])"
    )
    assert not loaded_by(code) & {"torch", "numpy", "pydantic", "matplotlib", "jinja2", "tokenizers"}


def test_imports_and_help_are_fast() -> None:
    bare = seconds("-c", "pass")
    assert seconds("-c", "import expertise") - bare <= 0.1
    assert seconds("-m", "expertise", "--help") <= max(0.5, 3 * bare)
    torch = seconds("-c", "import torch")
    assert seconds("-c", "import torch, expertise.mixture, expertise.lm") <= 1.3 * torch


def loaded_by(code: str) -> set[str]:
    tail = "; import sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def seconds(*arguments: str) -> float:
    """The least CPU time of several starts, so that a busy machine does not count."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)
