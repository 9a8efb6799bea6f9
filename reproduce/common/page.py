"""Pages of results: Markdown tables and dot charts from tidy rows, with every seed in sight."""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expertise.errors import counted
from expertise.runs.results import Results, Row

Column = Sequence[Row]
"""The rows of one setting, all of one metric."""


ERRORS = 2
"""So many standard errors above 0 counts as above, and below a limit as below."""
Spread = Literal["std", "error"]
"""The number behind a mean: the deviation over seeds, or the standard error."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Values of several seeds."""

    values: Mapping[int, float]
    """Seed → value."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for a single seed."""
        return None if self.std is None else self.std / math.sqrt(len(self.values))

    def text(self, digits: int, spread: Spread = "std") -> str:
        """The mean, and the deviation or the error where there is one."""
        around: float | None = getattr(self, spread)
        return f"{self.mean:.{digits}f}" + ("" if around is None else f" ± {around:.{digits}f}")


def figures(rows: Column) -> dict[str, Figure]:
    """Row → its figure, in the order in which rows first occur."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.row, {})[row.seed] = row.value
    return {name: Figure(values=dict(sorted(values.items()))) for name, values in found.items()}


def markdown_table(
    corner: str,
    order: Sequence[str],
    columns: Mapping[str, Column],
    *,
    digits: int = 3,
    least: bool | None = True,
    spread: Spread = "std",
) -> str:
    """Rows by columns, means over the seeds and their spread; what is missing is a dash.

    Args:
        corner: heading of the first column.
        order: the rows, from top to bottom; those without any value are left out.
        columns: heading → its rows.
        digits: decimals.
        least: put the least mean of each column in bold, else the greatest, and none where all are the same;
            None: nothing.
        spread: what stands behind a mean.
    """
    cells = {heading: figures(rows) for heading, rows in columns.items()}
    means = {
        heading: {found[name].mean for name in order if name in found} for heading, found in cells.items()
    }
    # Where all are equal none is the best.
    ranked = {} if least is None else {heading: of for heading, of in means.items() if len(of) > 1}
    best = {heading: (min if least else max)(of) for heading, of in ranked.items()}
    lines = [f"| {corner} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in order:
        if not any(name in found for found in cells.values()):
            continue
        texts = []
        for heading, found in cells.items():
            text = found[name].text(digits, spread) if name in found else "–"
            texts.append(f"**{text}**" if name in found and found[name].mean == best.get(heading) else text)
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def wins(rows: Column, row: str, others: Sequence[str]) -> tuple[int, int]:
    """In how many seeds a row is below every one of some others, and how many seeds have them all."""
    found = figures(rows)
    if row not in found or not all(name in found for name in others):
        return 0, 0
    shared = [seed for seed in found[row].values if all(seed in found[name].values for name in others)]
    won = [
        seed for seed in shared if all(found[row].values[seed] < found[name].values[seed] for name in others)
    ]
    return len(won), len(shared)


def paired(rows: Column, row: str, other: str) -> Figure | None:
    """A row less another, seed by seed; None where no seed has both."""
    found = figures(rows)
    if row not in found or other not in found:
        return None
    one, two = found[row].values, found[other].values
    differences = {seed: one[seed] - two[seed] for seed in one if seed in two}
    return Figure(values=differences) if differences else None


def dot_chart(order: Sequence[str], columns: Mapping[str, Column], x_label: str) -> str:
    """An SVG file with one panel per column: a dot per seed, a bar at the mean.

    Args:
        order: the rows, from top to bottom.
        columns: a panel's title → its rows.
        x_label: what is drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    names = [name for name in order if any(name in figures(rows) for rows in columns.values())]
    canvas = Canvas(figsize=(2.2 + 3.1 * len(columns), 0.7 + 0.27 * len(names)), layout="constrained")
    panels = canvas.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, (title, rows) in zip(panels, columns.items(), strict=True):
        for place, name in enumerate(names):
            figure = figures(rows).get(name)
            if figure is None:
                continue
            values = list(figure.values.values())
            panel.plot(values, [place] * len(values), "o", color="#0b5cad", markersize=4, alpha=0.75)
            panel.plot([figure.mean] * 2, [place - 0.32, place + 0.32], color="#1c1b19", linewidth=1.6)
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_xlabel(x_label, fontsize=9)
        panel.set_yticks(range(len(names)), names, fontsize=9)
        panel.tick_params(axis="x", labelsize=8)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#e9e5de", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].invert_yaxis()
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "expertise-results"}):
        canvas.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+\n", "\n", buffer.getvalue())


def settings_of(results: Results, table: str) -> list[str]:
    """The settings of a table, in the order in which they came."""
    return list(dict.fromkeys(row.setting for row in results.rows if row.table == table))


def number_of(setting: str) -> int:
    """The trajectories, demonstrations or steps in the name of a setting; 0 where there are none."""
    found = re.search(r"\d+", setting.rpartition("/")[2])
    return int(found[0]) if found else 0


def metric_of(results: Results, table: str, wanted: Sequence[str]) -> str:
    """The first of some metrics that a table has; the first of all where it has none."""
    there = {row.metric for row in results.rows if row.table == table}
    return next((metric for metric in wanted if metric in there), wanted[0])


def mean_of(found: Sequence[Figure]) -> Figure:
    """The mean of several figures, seed by seed; of the seeds that all of them have."""
    seeds = set.intersection(*(set(figure.values) for figure in found)) if found else set()
    return Figure(
        values={seed: statistics.fmean(figure.values[seed] for figure in found) for seed in sorted(seeds)}
    )


def is_above(difference: Figure) -> bool:
    """Return True if it lies above 0 by more than `ERRORS` standard errors."""
    error = difference.error
    return error is not None and difference.mean > ERRORS * error


def is_below(figure: Figure, limit: float) -> bool:
    """Return True if it lies below a limit by more than `ERRORS` standard errors."""
    error = figure.error
    return error is not None and figure.mean + ERRORS * error < limit


def text_of(difference: Figure, digits: int) -> str:
    """A difference with its standard error and its number of seeds."""
    around = "" if difference.error is None else f" ± {difference.error:.{digits}f}"
    return f"{difference.mean:+.{digits}f}{around}, {counted(len(difference.values), 'seed')}"
