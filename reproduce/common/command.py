"""`python -m reproduce.NAME`: measure the rows that are missing, and write the page of all of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from expertise.errors import ExpertiseError
from expertise.runs.results import Results

ROOT = Path(__file__).parents[2]


def results_of(name: str) -> Path:
    """The committed rows of an experiment; its page stands beside them."""
    return ROOT / f"docs/results/{name}.json"


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Options that every experiment has."""
    made = argparse.ArgumentParser(prog=f"python -m reproduce.{name}", description=about)
    made.add_argument("--seeds", type=int, nargs="+", help="only these, so that others may run beside")
    made.add_argument("--folder", type=Path, default=ROOT / "runs" / name, help="for text and trainings")
    made.add_argument("--results", type=Path, default=results_of(name), help="the rows, beside the page")
    made.add_argument("--page", action="store_true", help="write the page from the rows and train nothing")
    return made


def run(
    chosen: argparse.Namespace, measure: Callable[[], None], write_page: Callable[[Results], Sequence[Path]]
) -> int:
    """Measure, unless only the page is wanted, and write the page; the command's exit code."""
    try:
        if not chosen.page:
            measure()
        for path in write_page(Results(chosen.results)):
            print(path)
    except ExpertiseError as error:
        print("\n".join([f"error: {error.message}", *(f"  {hint}" for hint in error.hints)]), file=sys.stderr)
        return 128 + getattr(error, "signal_number", 2 - 128)
    return 0


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)
