"""Charts drawn as inline SVG that stretches with the page: heat maps, bars, weights over time, dot maps."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from expertise.report.colours import MAX_DOMAINS, Scale, ratio_step
from expertise.report.page import safe

if TYPE_CHECKING:
    from markupsafe import Markup

_WIDTH, _HEIGHT = 1000, 200
_WIDEST, _TALLEST = 4.0, 1.25
"""Bounds of a map's height over its width and the inverse; beyond them its axes differ in scale."""

Span = tuple[float, float]
"""Least and greatest value that is drawn."""


def heat_map(
    columns: Sequence[Sequence[float]],
    *,
    column_names: Sequence[str],
    row_names: Sequence[str],
    alt: str,
    unit: str,
    order: Sequence[int],
    height: int,
) -> Markup:
    """Ratios around 1, `columns[c][r]`, as cells as wide as their container.

    The page's script names the cell that is pointed at, and puts the columns in another order than `order`.
    """
    groups = [
        f'<g style="transform:translateX({place}px)">{_column(columns[column])}</g>'
        for place, column in enumerate(order)
    ]
    data = {
        "columns": [[round(float(value), 2) for value in column] for column in columns],
        "names": list(column_names),
        "rows": list(row_names),
        "unit": unit,
        "order": list(order),
    }
    attribute = escape(json.dumps(data, separators=(",", ":"), ensure_ascii=False))
    return safe(
        f'<svg class="heat" role="img" tabindex="0" aria-label="{escape(alt)}" data-map="{attribute}"'
        f' viewBox="0 0 {len(columns)} {len(row_names)}" preserveAspectRatio="none"'
        f' style="height:{height}px">{"".join(groups)}</svg>'
    )


def _column(values: Sequence[float]) -> str:
    """One path per colour, with neighbours of the same colour drawn as one."""
    shapes: dict[int, list[str]] = {}
    row = 0
    for step, same in itertools.groupby(ratio_step(float(value)) for value in values):
        length = len(list(same))
        # A hair more than one wide: else the page shows through between columns.
        shapes.setdefault(step, []).append(f"M0 {row}h1.02v{length}H0z")
        row += length
    return "".join(f'<path class="d{step}" d="{"".join(parts)}"/>' for step, parts in sorted(shapes.items()))


def load_bars(values: Sequence[float], height: int, alt: str) -> Markup:
    """Horizontal bars, one per row of a heat map that stands beside it, with a line at 1."""
    most = max(max(values, default=1.0) * 1.04, 1.25)
    shapes = "".join(
        f'<path class="d{ratio_step(float(value))}" d="M0 {row}.1h{value:.3f}v.8H0z"/>'
        for row, value in enumerate(values)
    )
    return safe(
        f'<svg class="bars" role="img" aria-label="{escape(alt)}" viewBox="0 0 {most:.3f} {len(values)}"'
        f' preserveAspectRatio="none" style="height:{height}px">{shapes}'
        f'<path class="one" d="M1 0V{len(values)}"/></svg>'
    )


def interval_bar(
    mean: float, error: float, span: Span, alt: str, paper: float | None = None, limit: float | None = None
) -> Markup:
    """A bar from 0 to `mean` with half its interval, `error`, and marks at the paper's figure and at a limit.

    `span` is the axis, with 0 in it; `alt` is for a reader who cannot see the bar.
    """

    def at(value: float) -> str:
        return f"{_WIDTH * (value - span[0]) / (span[1] - span[0]):.1f}"

    shapes = [f'<path class="bar" d="M{at(0.0)} 3H{at(mean)}V17H{at(0.0)}z"/>']
    if limit is not None:
        shapes.append(f'<path class="limit" d="M{at(limit)} 0V20"/>')
    if error > 0:
        low, high = at(mean - error), at(mean + error)
        shapes.append(f'<path class="whisker" d="M{low} 10H{high}M{low} 6V14M{high} 6V14"/>')
    if paper is not None:
        shapes.append(f'<path class="paper" d="M{at(paper)} 1V19"/>')
    return _svg("interval", f"0 0 {_WIDTH} 20", alt, shapes)


def timeline(
    series: Sequence[Sequence[float]],
    span: Span,
    alt: str,
    costly: Sequence[bool] = (),
    risky: Sequence[bool] = (),
) -> Markup:
    """One line per series over the same steps, in the page's colours; costly and risky steps are shaded.

    `span` is the vertical axis, with 0 in it; `alt` is for a reader who cannot see the lines.
    """
    steps = len(series[0])

    def x(place: float | int) -> str:
        return f"{_WIDTH * place / steps:.1f}"

    def y(value: float) -> str:
        return f"{_HEIGHT * (span[1] - value) / (span[1] - span[0]):.1f}"

    shapes = []
    for kind, marked in (("risky", risky), ("costly", costly)):
        shapes += [
            f'<path class="{kind}" d="M{x(a)} 0H{x(b)}V{_HEIGHT}H{x(a)}z"/>' for a, b in _stretches(marked)
        ]
    shapes.append(f'<path class="zero" d="M0 {y(0.0)}H{_WIDTH}"/>')
    for number, values in enumerate(series):
        points = "L".join(f"{x(step + 0.5)} {y(value)}" for step, value in enumerate(values))
        colour = f"var(--k{number % MAX_DOMAINS})"
        shapes.append(f'<path class="line" style="stroke:{colour}" d="M{points}"/>')
    return _svg("timeline", f"0 0 {_WIDTH} {_HEIGHT}", alt, shapes)


def dot_map(places: Sequence[Sequence[float]], values: Sequence[float], scale: Scale, alt: str) -> Markup:
    """A dot at each place (x, y), coloured by its value; the greatest ones are drawn last."""
    (left, right), (low, high) = (_extent([place[axis] for place in places]) for axis in (0, 1))
    ratio = min(max((high - low) / (right - left), 1 / _WIDEST), _TALLEST)
    height = _WIDTH * ratio
    dots = [
        f'<circle class="d{scale.step(values[i])}" cx="{_WIDTH * (places[i][0] - left) / (right - left):.0f}"'
        f' cy="{height * (high - places[i][1]) / (high - low):.0f}" r="11"/>'
        for i in sorted(range(len(places)), key=lambda i: values[i])
    ]
    return _svg("dots", f"-15 -15 {_WIDTH + 30} {height + 30:.0f}", alt, dots, stretch=False)


def same_scale(places: Sequence[Sequence[float]]) -> bool:
    """Return True if both axes of `dot_map` have one scale for these places."""
    (left, right), (low, high) = (_extent([place[axis] for place in places]) for axis in (0, 1))
    return 1 / _WIDEST <= (high - low) / (right - left) <= _TALLEST


def _extent(values: Sequence[float]) -> Span:
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def _stretches(marked: Sequence[bool]) -> list[tuple[int, int]]:
    """First and after-last index of each run of true ones."""
    ends = [i for i in range(len(marked) + 1) if (i > 0 and marked[i - 1]) != (i < len(marked) and marked[i])]
    return list(zip(ends[::2], ends[1::2], strict=True))


def _svg(kind: str, box: str, alt: str, shapes: Sequence[str], stretch: bool = True) -> Markup:
    how = ' preserveAspectRatio="none"' if stretch else ""
    head = f'<svg class="{kind}" role="img" aria-label="{escape(alt)}" viewBox="{box}"{how}>'
    return safe(f"{head}{''.join(shapes)}</svg>")
