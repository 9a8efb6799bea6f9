"""Line charts as inline SVG whose colours are CSS variables, so that they follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from expertise.report import text
from expertise.report.page import safe
from expertise.report.records import EvaluationPoint, TrainPoint

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib wants real colours: each of these stands for a CSS variable and is replaced in the SVG.
_SENTINELS = {
    "ink": "#0a0b01",
    "muted": "#0a0b02",
    "line": "#0a0b03",
    "accent": "#0a0b04",
    "faint": "#0a0b05",
    **{f"s{i}": f"#0a0b1{i}" for i in range(8)},
    **{f"y{i}": f"#0a0b2{i}" for i in range(8)},
    **{f"k{i}": f"#0a0b3{i}" for i in range(8)},
}
_MAX_POINTS = 400
_UNITS = (
    (1e12, "trillion tokens"),
    (1e9, "billion tokens"),
    (1e6, "million tokens"),
    (1e3, "thousand tokens"),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series.

    Attributes:
        x: positions, ascending.
        y: values, as many as `x`.
        label: written at the right end, beside the last value; empty for none.
        colour: a name from the page's palette: ink, muted, accent, faint, s0 to s7, y0 to y7, k0 to k7.
        width: of the stroke, in pixels.
        show_value: add the last value to the label.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    colour: str = "accent"
    width: float = 2.0
    show_value: bool = True


def token_axis(points: Sequence[TrainPoint | EvaluationPoint]) -> tuple[list[float], str]:
    """Positions of points of a curve and their unit: numbers of tokens, or steps where none are known."""
    if any(point.tokens is None for point in points):
        return [float(i if point.step is None else point.step) for i, point in enumerate(points)], "steps"
    counts = [float(point.tokens or 0) for point in points]
    largest = max(counts, default=0.0)
    size, name = next(((size, name) for size, name in _UNITS if largest >= size), (1.0, "tokens"))
    return [count / size for count in counts], name


def thin(x: Sequence[float], y: Sequence[float], most: int = _MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` points: means over neighbours, the last point kept as it is."""
    if len(x) <= most:
        return list(x), list(y)
    size = -(-len(x) // (most - 1))
    xs, ys = [], []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        xs.append(sum(x[part]) / len(x[part]))
        ys.append(sum(y[part]) / len(y[part]))
    return [*xs, x[-1]], [*ys, y[-1]]


def smooth(y: Sequence[float], over: int) -> list[float]:
    """A centred running mean over `over` values, shorter at the ends."""
    half = over // 2
    windows = [y[max(0, i - half) : i + half + 1] for i in range(len(y))]
    return [sum(window) / len(window) for window in windows]


def _spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, ascending as they are, at least `gap` apart and inside [low, high]."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    previous = low - gap
    for i in order:
        previous = placed[i] = max(wanted[i], previous + gap)
    following = high + gap
    for i in reversed(order):
        following = placed[i] = min(placed[i], following - gap)
    return placed


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element without anything global: no ids but its own, no styles, no fonts."""
    import matplotlib

    buffer = io.StringIO()
    # The salt makes the ids of clip paths and markers depend on the figure's name and on nothing else.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"expertise-{name}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|<!--.*?-->", "", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for variable, sentinel in _SENTINELS.items():
        svg = svg.replace(sentinel, f"var(--{variable})")
    svg = re.sub(r"\s*\n\s*", " ", svg[svg.index(">") + 1 :]).replace("> <", "><")
    head = f'<svg class="chart" role="img" aria-label="{escape(alt)}" viewBox="{box[1]}">'
    return safe(head + svg.strip())


def _axes(width: int, height: int, right: int) -> tuple[Figure, Axes]:
    """A bare figure of so many pixels, with room on the right for labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    left, bottom, top = 34, 36, 10
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_SENTINELS["faint"])
    axes.tick_params(length=0, labelsize=11, labelcolor=_SENTINELS["muted"], pad=5)
    axes.grid(axis="y", color=_SENTINELS["line"], linewidth=1)
    axes.set_axisbelow(True)
    return figure, axes


def _plain_ticks(value: float, _: Any) -> str:
    return text.compact(value) if abs(value) >= 1000 else f"{value:g}"


def _write_labels(axes: Axes, labels: Sequence[tuple[float, str, str, bool]]) -> None:
    """Write (value, text, colour, bold) to the right of the axes, moved apart where they would touch."""
    box = axes.get_window_extent()
    low, high = axes.get_ylim()
    heights = [(value - low) / (high - low or 1.0) * box.height for value, *_ in labels]
    placed = _spread_labels(heights, 14.0, 4.0, box.height - 2)
    for y, (_, words, colour, bold) in zip(placed, labels, strict=True):
        axes.text(
            1.0 + 7 / box.width,
            y / box.height,
            words.replace("$", r"\$"),
            transform=axes.transAxes,
            va="center",
            fontsize=11.5,
            fontweight="bold" if bold else "normal",
            color=_SENTINELS[colour],
        )


def line_chart(
    name: str,
    alt: str,
    lines: Sequence[Line],
    *,
    references: Sequence[tuple[str, float]] = (),
    x_label: str = "tokens",
    limits: tuple[float, float] | None = None,
    size: tuple[int, int] = (390, 250),
    digits: int = 2,
    ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over tokens or steps, each labelled at its end.

    Args:
        name: unique on the page.
        alt: what a reader who cannot see the chart should know.
        lines: the series, drawn in this order.
        references: (name, value) of dashed horizontal lines.
        x_label: what the horizontal axis counts.
        limits: the range of the vertical axis, where several charts share it.
        size: width and height in pixels.
        digits: decimals of the last values.
        ticks: places on the horizontal axis and what is written there, where these are not its own numbers.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    labelled = [line for line in lines if line.label or line.show_value]
    room = max([len(line.label) for line in labelled] + [len(word) for word, _ in references] + [0])
    with_value = 5 if references or any(line.show_value for line in lines) else 0
    figure, axes = _axes(*size, right=16 + round(6.6 * (room + with_value)))
    for line in lines:
        lone = len(line.x) == 1
        axes.plot(
            line.x,
            line.y,
            color=_SENTINELS[line.colour],
            linewidth=line.width,
            marker="o" if lone else "",
            markersize=6,
            solid_capstyle="round",
            clip_on=limits is not None and not lone,
        )
    for _, value in references:
        axes.axhline(value, color=_SENTINELS["muted"], linewidth=1.3, dashes=(4, 3))
    if limits is not None:
        axes.set_ylim(*limits)
    axes.margins(x=0)
    axes.set_xlabel(x_label, fontsize=11, color=_SENTINELS["muted"], labelpad=4)
    # "1 M" at the right end must not be cut, and few round numbers say enough.
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain_ticks))
    if ticks:
        axes.set_xticks([place for place, _ in ticks], [word for _, word in ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(_plain_ticks))
    labels = [
        (
            float(line.y[-1]),
            f"{line.label} {line.y[-1]:.{digits}f}".strip() if line.show_value else line.label,
            {"s0": "ink"}.get(line.colour, line.colour),
            line.colour in ("accent", "ink"),
        )
        for line in labelled
    ]
    labels += [(value, f"{word} {value:.{digits}f}", "muted", False) for word, value in references]
    _write_labels(axes, labels)
    return _svg(figure, name, alt)
