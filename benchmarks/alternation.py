"""What the benchmarks share: ways that take turns, ratios within each turn, results as tidy rows."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from expertise import __version__

Row = dict[str, Any]
"""One measurement: table, setting, row, metric, unit, seed, value."""

RESULTS = Path(__file__).parents[1] / "docs/results"


def alternate(
    ways: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """CPU seconds per call of each way, round by round; a first round counts for nothing.

    CPU time of this process, so that with a single thread other programs on the machine count for little.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            for _ in range(calls):
                way()
            if turn:
                times[name].append((time.process_time() - start) / calls)
    return times


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """How many times as long as the reference: the median over the rounds of the ratio within each."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def row(table: str, setting: str, name: str, metric: str, unit: str, value: float) -> Row:
    """One measurement."""
    return {
        "table": table,
        "setting": setting,
        "row": name,
        "metric": metric,
        "unit": unit,
        "seed": 0,
        "value": value,
    }


def show(rows: Iterable[Row]) -> None:
    """Print the rows."""
    setting = None
    for r in rows:
        if r["setting"] != setting:
            setting = r["setting"]
            print(f"{r['table']}: {setting}")
        print(f"  {r['row']:<42}{r['metric']:<16}{r['value']:>12.4f} {r['unit']}")


def write(file: str, rows: Iterable[Row], peers: Iterable[str] = ()) -> None:
    """Write rows under `docs/results/`, with the versions of what was measured."""
    environment = {
        "expertise": __version__,
        "torch": torch.__version__,
        **{peer: importlib.metadata.version(peer) for peer in peers},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"environment": environment, "rows": list(rows)}, indent=1)
    (RESULTS / file).write_text(content + "\n", "utf-8")
