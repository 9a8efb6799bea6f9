"""`make test-mutation`: change one place of the source at a time, and see whether a test fails.

cosmic-ray makes the mutants and runs the tests. This script draws the sample, picks the tests of each module,
gives each worker a copy of the tree, keeps finished rows, and writes the page. Run again, it goes on where it
stopped: a mutant is tested anew only if its module has changed, or if it survived and its tests have changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from cosmic_ray.commands import init as make_session
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome

from expertise.errors import ExpertiseError, RunError
from expertise.runs.files import write_atomic
from expertise.runs.results import environment

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs/results/mutation.json"
PAGE = ROOT / "docs/results/mutation.md"
REASONS = Path(__file__).with_name("reasons.toml")

SEED = 1
"""Not 0: tests were written with the sample of seed 0 in sight, so its figure would flatter them."""
WANTED = 0.9
"""The share of mutants that must be caught."""

COPIED = ("src", "tests", "pyproject.toml")
MUTATED = (
    "mixture",
    "runs/checkpoint.py",
    "lm/objective.py",
    "policy/diffusion.py",
)
"""Modules and packages under `src/expertise` that are changed."""

OWN_TESTS = {
    "mixture/dispatch": ["contract/test_mixture_contract.py", "contract/test_mixture_compiled.py"],
    "mixture/grouped_linear.py": ["mixture/test_grouped_linear.py", "contract/test_mixture_compiled.py"],
    "mixture/parts": [
        "mixture/test_mixture.py",
        "mixture/test_parts.py",
        "contract/test_mixture_contract.py",
    ],
    "mixture/parts/low_rank.py": [
        "mixture/test_parts.py",
        "mixture/test_mixture.py",
        "skills/test_joined.py",
        "contract/test_mixture_contract.py",
    ],
    "mixture/routers/learned.py": ["mixture/test_routers.py", "mixture/test_learned.py"],
    "mixture/routers/top_k.py": ["mixture/test_routers.py", "mixture/test_learned.py"],
    "mixture/routers/top_p.py": ["mixture/test_routers.py", "mixture/test_learned.py"],
    "runs/checkpoint.py": ["runs/test_checkpoint.py", "runs/test_loop.py", "runs/test_resume.py"],
    "lm/objective.py": ["lm/test_objective.py", "lm/test_documents.py", "lm/test_balance_training.py"],
    "policy/diffusion.py": ["policy/test_diffusion.py", "policy/test_policy.py"],
}
"""Test files of a module or package, the quickest and nearest first. A module of the mixture has the file of
its own name as well, and at the end all tests of the mixture and the contract."""

ANNOTATIONS = "house/test_annotations.py"
"""Runs second for every module: one mutant in fourteen changes an annotation."""

PYTEST = "-x -q --no-header --tb=no -rfE -p no:cacheprovider -p no:xdist --hypothesis-seed=0"
"""One process; the options for shapes come from pyproject.toml."""


# --- the sample -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one place."""

    id: str
    """Follows from the line, the place in it, the change and the function: other lines may move."""
    module: str
    """Path under `src/expertise`."""
    function: str
    """The class or function that it lies in, or "" at the top of the module."""
    operator: str
    """cosmic-ray's name of the change."""
    occurrence: int
    """Which of the places in the module that cosmic-ray's operator can change."""
    line: int
    """Line number in the module."""


def all_mutants() -> list[Mutant]:
    """Every mutant that cosmic-ray can make of the modules, none left out."""
    source = ROOT / "src/expertise"
    paths = [path for name in MUTATED for path in _modules(source / name)]
    with tempfile.TemporaryDirectory() as folder, use_db(str(Path(folder) / "session.sqlite")) as session:
        make_session(paths, session, {})
        specs = [spec for item in session.work_items for spec in item.mutations]
    lines = {path: path.read_text("utf-8").splitlines() for path in paths}
    seen: Counter[tuple[Any, ...]] = Counter()
    found = []
    for spec in sorted(specs, key=lambda s: (str(s.module_path), s.operator_name, s.occurrence)):
        module, function = spec.module_path.relative_to(source).as_posix(), spec.definition_name or ""
        number, column = spec.start_pos
        line = lines[spec.module_path][number - 1]
        indent = len(line) - len(line.lstrip())
        place = (module, function, spec.operator_name, line.strip(), column - indent)
        found.append(
            Mutant(
                id=hashlib.sha256(repr((*place, seen[place])).encode()).hexdigest()[:12],
                module=module,
                function=function,
                operator=spec.operator_name.removeprefix("core/"),
                occurrence=spec.occurrence,
                line=number,
            )
        )
        seen[place] += 1
    return found


def _modules(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def draw(mutants: Iterable[Mutant], size: int) -> list[Mutant]:
    """A sample without replacement in which every mutant is as likely as any other.

    The order is that of a hash of seed and id. So a larger sample begins with the smaller one, and a change
    of one line leaves the draw among all other lines as it is.
    """
    return sorted(mutants, key=lambda m: hashlib.sha256(f"{SEED} {m.id}".encode()).digest())[:size]


def tests_of(module: str) -> list[str]:
    """Test files of a module, in the order in which they run, as paths from the root."""
    parents = [module, *(str(parent) for parent in Path(module).parents)]
    files = list(next((OWN_TESTS[name] for name in parents if name in OWN_TESTS), []))
    rest: list[str] = []
    if module.startswith("mixture/"):
        all_files = sorted(path.name for path in (ROOT / "tests/mixture").glob("test_*.py"))
        files += [f"mixture/{name}" for name in all_files if name == f"test_{Path(module).stem}.py"]
        rest = [*(f"mixture/{name}" for name in all_files), "contract/test_mixture_contract.py"]
    return [f"tests/{name}" for name in dict.fromkeys([*files[:1], ANNOTATIONS, *files[1:], *rest])]


def _digest(names: Iterable[str]) -> str:
    content = [(name, (ROOT / name).read_text("utf-8")) for name in names]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# --- workers ----------------------------------------------------------------------------------------------


def _enter_copy(parent: str) -> None:
    """Go to a copy of the tree that belongs to this worker: the checkout itself is never changed."""
    copy = Path(tempfile.mkdtemp(dir=parent))
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy / "src")
    os.environ["OMP_NUM_THREADS"] = "1"
    said = subprocess.run(
        [sys.executable, "-c", "import expertise; print(expertise.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    if not Path(said.stdout.strip()).is_relative_to(copy.resolve()):
        raise RunError(f"the tests would import {said.stdout.strip()}, not the copy in {copy}")


def _command(tests: list[str]) -> str:
    return shlex.join([sys.executable, "-m", "pytest", *PYTEST.split(), *tests])


def measure(tests: list[str]) -> float:
    """Seconds that tests take when nothing is changed; they must pass."""
    began = time.monotonic()
    done = subprocess.run(shlex.split(_command(tests)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"tests fail without any mutant:\n{done.stdout[-3000:]}")
    return time.monotonic() - began


def judge(mutant: Mutant, tests: list[str], timeout: float) -> dict[str, Any]:
    """The row of one mutant. The tests are those of the beginning: the checkout may have more by now."""
    began = time.monotonic()
    spec = MutationSpec(
        module_path=Path("src/expertise", mutant.module),
        operator_name=f"core/{mutant.operator}",
        occurrence=mutant.occurrence,
        start_pos=(mutant.line, 0),
        end_pos=(mutant.line, 1),
    )
    result = mutate_and_test([spec], _command(tests), timeout)
    if result.worker_outcome is not WorkerOutcome.NORMAL or result.test_outcome is TestOutcome.INCOMPETENT:
        raise RunError(f"{mutant} could not be tested: {result.output}")
    output = result.output or ""
    failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?([^\s\[]+)", output, re.MULTILINE)
    caught = result.test_outcome is TestOutcome.KILLED
    changed = [line for line in (result.diff or "").splitlines() if re.match(r"[-+](?!--|\+\+)", line)]
    return {
        **dataclasses.asdict(mutant),
        "before": " ".join(line[1:].strip() for line in changed if line[0] == "-"),
        "after": " ".join(line[1:].strip() for line in changed if line[0] == "+"),
        "caught": caught,
        "by": "" if not caught else failed[1] if failed else "time" if output == "timeout" else "start",
        "seconds": round(time.monotonic() - began, 1),
    }


# --- rows -------------------------------------------------------------------------------------------------


class Rows:
    """Finished rows on disk, those that still hold: the rest is dropped with the next row."""

    def __init__(self, mutants: Iterable[Mutant]) -> None:
        modules = {mutant.module for mutant in mutants}
        self._sources = {m: _digest([f"src/expertise/{m}"]) for m in modules}
        self._tests = {m: _digest(tests_of(m)) for m in modules}
        self._known = {mutant.id: mutant for mutant in mutants}
        kept = json.loads(ROWS.read_text("utf-8")) if ROWS.is_file() else {}
        self.seconds: dict[str, float] = kept.get("seconds", {})
        """Of the unchanged tests of each module, as last measured."""
        self.by_id = {row["id"]: row for row in kept.get("rows", []) if self._holds(row)}

    def _holds(self, row: dict[str, Any]) -> bool:
        mutant = self._known.get(row["id"])
        if mutant is None or row["source"] != self._sources[mutant.module]:
            return False
        return bool(row["caught"]) or row["tests"] == self._tests[mutant.module]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row at once: a stop loses only what is being tested."""
        module = row["module"]
        self.by_id[row["id"]] = {**row, "source": self._sources[module], "tests": self._tests[module]}
        self.write()

    def write(self) -> None:
        """Write the file anew in one step."""
        rows = sorted(self.by_id.values(), key=lambda row: (row["module"], row["line"], row["id"]))
        content = {"environment": environment(), "seed": SEED, "seconds": self.seconds, "rows": rows}
        write_atomic(ROWS, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def test_all(missing: list[Mutant], rows: Rows, workers: int) -> None:
    """Test the mutants that have no row yet."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as parent:
        pool = ProcessPoolExecutor(workers, initializer=_enter_copy, initargs=(parent,))
        try:
            tests = {mutant.module: tests_of(mutant.module) for mutant in missing}
            # Modules whose tests differ in their order alone share one measurement.
            groups: dict[frozenset[str], set[str]] = {}
            for module, names in tests.items():
                groups.setdefault(frozenset(names), set()).add(module)
            print(f"{len(groups)} selections of tests, without a mutant", flush=True)
            for modules, seconds in zip(groups.values(), pool.map(measure, map(sorted, groups)), strict=True):
                print(f"{seconds:5.1f} s {', '.join(sorted(modules))}", flush=True)
                rows.seconds |= dict.fromkeys(modules, round(seconds, 1))
            waiting = [
                pool.submit(judge, m, tests[m.module], 60 + 5 * rows.seconds[m.module]) for m in missing
            ]
            for number, done in enumerate(as_completed(waiting), 1):
                row = done.result()
                rows.add(row)
                outcome = f"caught by {row['by']}" if row["caught"] else f"SURVIVED: {row['after']}"
                place = f"{row['module']}:{row['line']} {row['operator']}"
                print(f"{number}/{len(missing)} {row['seconds']:5.1f} s {place} {outcome}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)


# --- the page ---------------------------------------------------------------------------------------------


def page(sample: list[Mutant], total: int, rows: Rows, reasons: dict[str, str]) -> str:
    """What is known of the sample, survivors with their reasons."""
    found = [rows.by_id[mutant.id] for mutant in sample if mutant.id in rows.by_id]
    survivors = sorted(
        (row for row in found if not row["caught"]), key=lambda row: (row["module"], row["line"])
    )
    caught = len(found) - len(survivors)
    slow, unread = (sum(row["by"] == by for row in found) for by in ("time", "start"))
    lines = [
        "# Mutants",
        "",
        "One place of the source is changed at a time, and the tests of that module must fail. Written by",
        "`make test-mutation`; each mutant's row is in `mutation.json`, reasons stand in",
        "`tests/mutation/reasons.toml`.",
        "",
        f"cosmic-ray can make {total:,} mutants of these modules, none is left out. Of a sample of "
        f"{len(sample)}, drawn with seed {SEED},",
        f"{len(found)} were tested and {caught} caught{f' ({caught / len(found):.1%})' if found else ''}; "
        f"of these {slow}",
        f"because the tests took too long and {unread} because no test could start.",
        "",
        "| module | tested | caught | seconds of its tests |",
        "|---|--:|--:|--:|",
    ]
    for module in sorted({row["module"] for row in found}):
        own = [row for row in found if row["module"] == module]
        numbers = f"{len(own)} | {sum(row['caught'] for row in own)} | {rows.seconds[module]:.0f}"
        lines.append(f"| `{module}` | {numbers} |")
    lines += ["", "## Survivors", ""]
    for row in survivors:
        place = row["function"] or "top of the module"
        lines += [
            f"- `{row['id']}` `{row['module']}`, `{place}`, {row['operator']}",
            f"  - before: `{row['before']}`",
            f"  - after: `{row['after']}`",
            f"  - {reasons.get(row['id'], '**No reason is written yet.**')}",
        ]
    return "\n".join([*lines, "" if survivors else "None.\n"]).rstrip("\n") + "\n"


def _read_reasons() -> dict[str, str]:
    found = tomllib.loads(REASONS.read_text("utf-8"))["survivor"] if REASONS.is_file() else []
    return {entry["id"]: entry["reason"] for entry in found}


def main() -> int:
    """0 if the whole sample was tested, enough was caught and each survivor has a reason."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sample", type=int, default=320, help="how many mutants (320)")
    options.add_argument("--workers", type=int, default=2, help="how many at once (2)")
    options.add_argument(
        "--only", default="", metavar="MODULE", help="only mutants of, say, mixture/balance.py"
    )
    options.add_argument("--limit", type=int, help="test at most so many now")
    options.add_argument("--page-only", action="store_true", help="test nothing, write the page")
    chosen = options.parse_args()
    # A polite kill ends like Ctrl-C: workers stop and their copies are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    mutants = all_mutants()
    sample = draw(mutants, chosen.sample)
    rows = Rows(mutants)
    missing = [m for m in sample if m.id not in rows.by_id and m.module.startswith(chosen.only)][
        : chosen.limit
    ]
    if missing and not chosen.page_only:
        test_all(missing, rows, chosen.workers)
    reasons = _read_reasons()
    write_atomic(PAGE, page(sample, len(mutants), rows, reasons))

    found = [rows.by_id[mutant.id] for mutant in sample if mutant.id in rows.by_id]
    survivors = [row for row in found if not row["caught"]]
    unexplained = [row["id"] for row in survivors if row["id"] not in reasons]
    print(f"{len(found)} of {len(sample)} tested, {len(survivors)} survived; {PAGE.relative_to(ROOT)}")
    if unexplained:
        print(f"without a reason in {REASONS.relative_to(ROOT)}: {', '.join(unexplained)}")
    unneeded = sorted({row["id"] for row in found if row["caught"]} & set(reasons))
    if unneeded:
        print(f"caught, and yet with a reason in {REASONS.relative_to(ROOT)}: {', '.join(unneeded)}")
    enough = len(survivors) <= (1 - WANTED) * len(found)
    if not enough:
        print(f"fewer than {WANTED:.0%} were caught")
    return 0 if enough and not unexplained and len(found) == len(sample) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ExpertiseError as error:
        sys.exit(error.message)
