"""Steps of the palettes for values. The palettes themselves are in `style.css`, once per mode."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expertise.report.text import signed

NUM_STEPS = 8
"""Steps of the sequential palette, `s0` (few) to `s7` (many)."""

RATIO_EDGES = (0.25, 0.4, 0.625, 0.87, 1.15, 1.6, 2.5, 4.0)
"""Borders of the diverging palette, `d0` (far below 1) to `d8` (far above): symmetric on a log scale."""

NUM_SIGNED = 9
"""Steps of the diverging palette."""

_EDGES = [f"{round(edge, 2):g}" for edge in RATIO_EDGES]
_BETWEEN = [f"{low}–{high}" for low, high in itertools.pairwise(_EDGES)]
RATIO_LEGEND = list(enumerate([f"under {_EDGES[0]}", *_BETWEEN, f"over {_EDGES[-1]}"]))
"""Steps and labels of the diverging palette."""

MAX_DOMAINS = 8
"""Domains that get a colour of their own, `k0` to `k7`; the ninth gets none."""


def ratio_step(value: float) -> int:
    """The step of a ratio in the diverging palette; 4 is the middle, around 1."""
    return bisect.bisect_right(RATIO_EDGES, value)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values to steps of the sequential palette.

    Attributes:
        edges: the lowest value of each class after the first, ascending.
        steps: the palette step of each class, one more than `edges`.
        labels: what the legend says of each class.
    """

    edges: tuple[float, ...]
    steps: tuple[int, ...]
    labels: tuple[str, ...]

    def index(self, value: float) -> int:
        """The class of a value."""
        return bisect.bisect_right(self.edges, value)

    def step(self, value: float) -> int:
        """The palette step of a value."""
        return self.steps[self.index(value)]

    def digits(self, values: Iterable[float]) -> str:
        """The palette steps of values, one digit each."""
        return "".join(str(self.step(value)) for value in values)

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Palette step and label of each class."""
        return list(zip(self.steps, self.labels, strict=True))


def _spread(count: int, most: int = NUM_STEPS) -> tuple[int, ...]:
    """Palette steps, of the first `most`, for so many classes: apart, but not over all for a few."""
    gap = (most - 1) / max(count - 1, 4)
    return tuple(round(gap * i) for i in range(count))


def count_scale(largest: int) -> Scale:
    """Classes for numbers of parts from 1 to `largest`: one each up to 8, else wider and wider ranges."""
    if largest <= NUM_STEPS:
        lows = list(range(1, max(largest, 1) + 1))
    else:
        lows = [1, 2, 3]
        growth = (largest / 3) ** (1 / (NUM_STEPS - 2))
        while len(lows) < NUM_STEPS:
            lows.append(max(lows[-1] + 1, round(3 * growth ** (len(lows) - 2))))
    labels = []
    for low, after in zip(lows, [*lows[1:], largest + 1], strict=True):
        high = max(after - 1, low)
        labels.append(str(low) if low == high else f"{low}–{high}")
    return Scale(edges=tuple(float(low) for low in lows[1:]), steps=_spread(len(lows)), labels=tuple(labels))


def signed_scale(values: Sequence[float], digits: int = 2) -> Scale:
    """Nine equal classes, symmetric around 0, onto the diverging palette.

    Those that no value needs are left out. A class is labelled by its middle.

    Args:
        values: any real numbers.
        digits: decimals of the classes' width.
    """
    unit = 10.0**-digits
    most = max((abs(value) for value in values), default=0.0)
    width = max(math.ceil(2 * most / NUM_SIGNED / unit - 1e-9) * unit, unit)
    middle = NUM_SIGNED // 2
    used = [
        bisect.bisect_right([(k - middle + 0.5) * width for k in range(NUM_SIGNED - 1)], value)
        for value in values
    ]
    low, high = min([middle, *used]), max([middle, *used])
    return Scale(
        edges=tuple((step - middle + 0.5) * width for step in range(low, high)),
        steps=tuple(range(low, high + 1)),
        labels=tuple(signed((step - middle) * width, digits) for step in range(low, high + 1)),
    )


def value_scale(values: Sequence[float], digits: int = 1, most: int = NUM_STEPS) -> Scale:
    """At most `most` equal classes between the extremes of `values`, borders round in `digits` decimals."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    unit = 10.0**-digits
    start = math.floor(low / unit) * unit
    width = max(math.ceil((high - start) / most / unit - 1e-9) * unit, unit)
    count = max(1, min(most, math.ceil((high - start) / width - 1e-9)))
    borders = [start + width * i for i in range(count + 1)]
    labels = tuple(f"{borders[i]:.{digits}f}–{borders[i + 1]:.{digits}f}" for i in range(count))
    # A hair below each border, so that 2.5 made of thirds falls into the class that begins with 2.5.
    edges = tuple(border - 1e-9 for border in borders[1:-1])
    return Scale(edges=edges, steps=_spread(count, most), labels=labels)
