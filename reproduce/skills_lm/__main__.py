"""`python -m reproduce.skills_lm`: train, measure, and write the page, going on where it stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from expertise.runs.results import Results
from reproduce.common import command
from reproduce.skills_lm.llama import Llama
from reproduce.skills_lm.measure import Bench
from reproduce.skills_lm.ours import Ours
from reproduce.skills_lm.page import write_page
from reproduce.skills_lm.plan import Plan
from reproduce.skills_lm.search import Search
from reproduce.skills_lm.text import write_pools

RESULTS = command.results_of("skills_lm")


def run(plan: Plan, results_path: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Measure every row that is missing.

    Args:
        plan: the sizes.
        results_path: the rows.
        folder: for text and trainings; may be deleted once the rows are there.
        say: told what happens.
    """
    torch.set_num_threads(1)
    text = folder / "text"
    write_pools(text, plan.pools, say)
    results = Results(results_path, plan.settings() | {"text": digest(text)})
    foreign = importlib.util.find_spec("transformers") is not None
    if not foreign:
        say("the tiny Llama is left out: transformers is not installed (pip install 'expertise[hf]')")
    for seed in plan.seeds:
        work = folder / f"seed-{seed}"
        ours = Ours(Bench(plan, results, seed, work / "ours", text, say))
        ours.measure()
        if foreign:
            Llama(Bench(plan, results, seed, work / "llama", text, say)).measure()
        if seed == Plan().seeds[0]:
            Search(ours).measure()


def digest(text: Path) -> str:
    """SHA-256 over the pools: rows that were measured on other text do not belong into the same table."""
    total = hashlib.sha256()
    for path in sorted(set(text.glob("*.jsonl")) - set(text.glob("few.*"))):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    chosen = command.parser("skills_lm", __doc__).parse_args(arguments)
    plan = Plan() if chosen.seeds is None else dataclasses.replace(Plan(), seeds=tuple(chosen.seeds))
    return command.run(chosen, lambda: run(plan, chosen.results, chosen.folder, command.say), write_page)


if __name__ == "__main__":
    sys.exit(main())
