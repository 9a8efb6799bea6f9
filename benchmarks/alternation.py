"""What benchmarks share: ways that take turns, and ratios within each turn."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from expertise import __version__
from expertise.runs.results import Row


def alternate(
    ways: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """CPU seconds per call of each way, round by round, after a first round that does not count.

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


def show(rows: Iterable[Row]) -> None:
    """Print rows, those of a setting under it."""
    setting = None
    for row in rows:
        if row.setting != setting:
            setting = row.setting
            print(f"{row.table}: {setting}")
        print(f"  {row.row:<42}{row.metric:<10}{row.value:>10.4f} {row.unit}")


def keep(path: Path, table: str, rows: list[dict[str, object]]) -> None:
    """Write a table's rows into a results file, beside those of other tables."""
    environment = {
        "expertise": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
    }
    before = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    rows = [row for row in before if row["table"] != table] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n", "utf-8")
