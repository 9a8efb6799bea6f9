"""Rows of one seed: each is measured once and kept with all its metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from expertise.runs.results import Results, Row

Values = Mapping[str, float]
"""Metric → value."""


class Bench:
    """Rows of one seed.

    Args:
        results: finished rows.
        seed: of all that is drawn.
        folder: for what is trained; may be deleted once the rows are there.
        say: told what happens.
        units: metric → unit; "1" for others.
    """

    def __init__(
        self,
        results: Results,
        seed: int,
        folder: Path,
        say: Callable[[str], None],
        units: Mapping[str, str],
    ) -> None:
        self.results, self.seed, self.folder, self.say, self._units = results, seed, folder, say, units

    def once(self, table: str, setting: str, row: str, measure: Callable[[], Values], metric: str) -> None:
        """Measure a row unless it is there, which its `metric` says; all its metrics are kept together."""
        if not self.results.has(table, setting, row, metric, self.seed):
            self.keep(table, setting, row, measure())

    def keep(self, table: str, setting: str, row: str, values: Values) -> None:
        """Keep what was measured."""
        self.results.add(
            Row(
                table=table,
                setting=setting,
                row=row,
                metric=metric,
                unit=self._units.get(metric, "1"),
                seed=self.seed,
                value=value,
            )
            for metric, value in values.items()
        )
        shown = ", ".join(f"{metric} {value:.5g}" for metric, value in values.items())
        self.say(f"{table} | {setting} | {row} | seed {self.seed}: {shown}")
