"""`python -m reproduce.psec SCENARIO …`: train, measure, and write the page, going on where it stopped."""

from __future__ import annotations

import dataclasses
import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from expertise.runs.results import Results
from reproduce.common import command
from reproduce.psec.bench import Bench
from reproduce.psec.page import write_psec_page

SCENARIOS = ("policy_shift", "safe", "dynamics", "many_tasks", "ours")
"""Modules beside this one, each with `SIZES` and `measure`."""
SEEDS = {"policy_shift": (0, 1, 2, 3, 4), "safe": (0, 1, 2, 3, 4)}
"""Of a scenario; others: three."""


def run(scenario: str, seed: int, results: Path, folder: Path) -> None:
    """Measure every row of one seed that is missing."""
    module = importlib.import_module(f"reproduce.psec.{scenario}")
    kept = Results(results, settings(module), scenario)
    work = folder / scenario / f"seed-{seed}"
    module.measure(Bench(module.SIZES, kept, seed, work, command.say))


def settings(module: Any) -> dict[str, Any]:
    """The settings that the rows of a scenario depend on: all its sizes, and how its policies act."""
    found = {"sizes": module.SIZES.settings()}
    if hasattr(module, "LARGE"):
        found["large"] = dataclasses.asdict(module.LARGE)
    if hasattr(module, "TABLES"):
        found["readings"] = {table: dataclasses.asdict(how) for table, how in module.TABLES.items()}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser("psec", __doc__)
    parser.add_argument("scenario", nargs="*", help=f"{', '.join(SCENARIOS)}; none: all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="seeds side by side")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.scenario) - set(SCENARIOS))
    if unknown:
        parser.error(f"unknown scenario {unknown[0]!r}; known are: {', '.join(SCENARIOS)}")
    jobs = [
        (scenario, seed, chosen.results, chosen.folder)
        for scenario in chosen.scenario or SCENARIOS
        for seed in chosen.seeds or SEEDS.get(scenario, (0, 1, 2))
    ]
    return command.run(chosen, lambda: _run_all(jobs, chosen.workers), write_psec_page)


def _run_all(jobs: Sequence[tuple[str, int, Path, Path]], workers: int) -> None:
    if workers < 2:
        for job in jobs:
            run(*job)
        return
    # Every job in a process of its own: a scenario's simulators keep memory.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1) as pool:
        for done in [pool.submit(run, *job) for job in jobs]:
            done.result()


if __name__ == "__main__":
    sys.exit(main())
