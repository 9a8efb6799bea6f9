"""What benchmarks share: ways that take turns, and ratios within each turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

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
