"""Heat maps as inline SVG: one group per column, so that columns can be put in another order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from expertise.report.colours import ratio_step
from expertise.report.page import safe

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Ratios around 1, as cells in columns and rows.

    Attributes:
        columns: values, `columns[c][r]`.
        column_names: one name per column, as the reader is told it.
        row_names: one name per row.
        alt: what a reader who cannot see the map should know.
        unit: written after a value.
        order: the columns from left to right, at first.
    """

    columns: Sequence[Sequence[float]]
    column_names: Sequence[str]
    row_names: Sequence[str]
    alt: str
    unit: str
    order: Sequence[int]

    def svg(self, height: int) -> Markup:
        """The cells, as wide as their container; the page's script names the one pointed at."""
        groups = []
        for place, column in enumerate(self.order):
            groups.append(f'<g style="transform:translateX({place}px)">{_column(self.columns[column])}</g>')
        data = {
            "columns": [[round(float(value), 2) for value in column] for column in self.columns],
            "names": list(self.column_names),
            "rows": list(self.row_names),
            "unit": self.unit,
            "order": list(self.order),
        }
        attribute = escape(json.dumps(data, separators=(",", ":"), ensure_ascii=False))
        return safe(
            f'<svg class="heat" role="img" tabindex="0" aria-label="{escape(self.alt)}"'
            f' data-map="{attribute}"'
            f' viewBox="0 0 {len(self.columns)} {len(self.row_names)}" preserveAspectRatio="none"'
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


def bars(values: Sequence[float], height: int, alt: str) -> Markup:
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
