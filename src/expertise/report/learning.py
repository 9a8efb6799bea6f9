"""Learning over time: loss, bits per byte beside general-purpose compressors, the optimizer's curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expertise.report.figures import Line, line_chart, smooth, thin
from expertise.report.record import domains, look, rows

_UNITS = (
    (1e12, "trillion tokens"),
    (1e9, "billion tokens"),
    (1e6, "million tokens"),
    (1e3, "thousand tokens"),
)
_MAX_PANELS = 9
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def token_axis(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], str]:
    """Positions of points of a curve and their unit: so many tokens, or steps where no tokens are known."""
    if any(look(point, "tokens") is None for point in points):
        return [float(look(point, "step", default=i)) for i, point in enumerate(points)], "steps"
    counts = [float(point["tokens"]) for point in points]
    largest = max(counts, default=0.0)
    size, name = next(((size, name) for size, name in _UNITS if largest >= size), (1.0, "tokens"))
    return [count / size for count in counts], name


def pick(points: Sequence[Any], *path: str) -> tuple[list[float], list[Any]]:
    """Values at a path, and the points that have one."""
    having = [point for point in points if look(point, *path) is not None]
    return [float(look(point, *path)) for point in having], having


def best_compressor(record: Mapping[str, Any], domain: str = "mean") -> tuple[str, float] | None:
    """Name and bits per byte of the compressor that does best on a domain."""
    found = [
        (float(look(values, domain)), str(name))
        for name, values in look(record, "compressors", default={}).items()
        if look(values, domain) is not None
    ]
    return (min(found)[1], min(found)[0]) if found else None


def _loss_chart(train: Sequence[Any]) -> dict[str, Any] | None:
    values, points = pick(train, "loss")
    if not values:
        return None
    x, x_label = token_axis(points)
    x, values = thin(x, values)
    lines = [Line(x=x, y=values, colour="accent")]
    if len(values) >= 40:
        lines = [
            Line(x=x, y=values, colour="faint", width=1.0, show_value=False),
            Line(x=x, y=smooth(values, max(3, len(values) // 25)), colour="accent"),
        ]
    alt = f"Training loss: from {values[0]:.2f} to {lines[-1].y[-1]:.2f} nats per token."
    return {
        "title": "Training loss",
        "unit": "nats per token",
        "svg": line_chart("loss", alt, lines, x_label=x_label),
        "caption": "Every step in grey, a running mean in colour."
        if len(lines) == 2
        else "The loss on the text being learnt.",
    }


def _bits_charts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One chart for the mean, then one per domain, the latter on a common axis."""
    evaluations = rows(record, "curves", "evaluations")
    names = ["mean", *domains(record)[:_MAX_PANELS]]
    if len(names) == 2:
        names = names[1:]
    compressors = look(record, "compressors", default={})
    curves = {name: pick(evaluations, "bits_per_byte", name) for name in names}
    references = {
        name: [(str(k), float(v[name])) for k, v in compressors.items() if look(v, name) is not None]
        for name in names
    }
    everything = [v for values, _ in curves.values() for v in values]
    everything += [v for some in references.values() for _, v in some]
    if not any(values for values, _ in curves.values()):
        return []
    low, high = min(everything), max(everything)
    limits = (max(0.0, low - 0.08 * (high - low)), high + 0.04 * (high - low) + 1e-6)
    charts = []
    for i, name in enumerate(names):
        values, points = curves[name]
        if not values:
            continue
        x, x_label = token_axis(points)
        versus = " ".join(f"{word} needs {value:.2f}." for word, value in references[name])
        title = "mean of the domains" if name == "mean" else name
        charts.append(
            {
                "title": title,
                "svg": line_chart(
                    f"bits-{i}",
                    f"Bits per byte, {title}: from {values[0]:.2f} to {values[-1]:.2f}. {versus}".strip(),
                    [Line(x=x, y=values, label="model")],
                    references=references[name],
                    x_label=x_label,
                    limits=limits,
                    size=(390, 250) if i == 0 else (310, 185),
                ),
            }
        )
    return charts


def _bits_table(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bits per byte, one row per domain, the model beside the compressors; the least of a row is marked."""
    bits = look(record, "summary", "bits_per_byte", default={})
    compressors = look(record, "compressors", default={})
    # A compressor that was not asked, because the text is too short, has no column.
    asked = [(str(k), v) for k, v in compressors.items() if any(value is not None for value in v.values())]
    columns = [("model", bits), *asked]
    body = []
    for name in [*domains(record), "mean"]:
        cells = [look(values, name) for _, values in columns]
        if any(cell is not None for cell in cells):
            least = min(float(cell) for cell in cells if cell is not None)
            body.append((name, [(cell, cell is not None and float(cell) == least) for cell in cells]))
    return {"columns": [name for name, _ in columns], "rows": body} if body else None


def learning(record: Mapping[str, Any]) -> dict[str, Any]:
    """Charts and table of the section on learning."""
    table = _bits_table(record)
    wins = ""
    if table and len(table["columns"]) > 1:
        against = [
            cells
            for name, cells in table["rows"]
            if name != "mean" and cells[0][0] is not None and any(cell is not None for cell, _ in cells[1:])
        ]
        won = sum(cells[0][1] for cells in against)
        if against:
            others = " and ".join(table["columns"][1:])
            wins = f"The model needs the fewest bits in {won} of {len(against)} domains, beside {others}."
    return {
        "loss": _loss_chart(rows(record, "curves", "train")),
        "bits": _bits_charts(record),
        "table": table,
        "wins": wins,
        "left_out": max(0, len(domains(record)) - _MAX_PANELS),
    }


def optimizer(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Small charts of balance losses, biases, gradient norm and learning rate."""
    train = rows(record, "curves", "train")
    balance = sorted({key for point in train for key in look(point, "balance", default={})})
    wanted: list[tuple[str, tuple[str, ...]]] = [
        (f"balance loss: {key}", ("balance", key)) for key in balance
    ]
    wanted += [("largest bias in the choice", ("largest_bias",))]
    wanted += [("gradient norm", ("gradient_norm",)), ("learning rate", ("learning_rate",))]
    charts = []
    for i, (title, path) in enumerate(wanted):
        values, points = pick(train, *path)
        if not values:
            continue
        x, x_label = token_axis(points)
        x, values = thin(x, values, 240)
        power = math.floor(math.log10(max(map(abs, values)) or 1.0))
        if power <= -2:
            # Else the ticks are long rows of noughts.
            values = [value / 10.0**power for value in values]
            title += f" × 10{str(power).translate(_SUPERSCRIPT)}"
        alt = f"{title}: from {values[0]:.3g} to {values[-1]:.3g}, at most {max(values):.3g}."
        line = Line(x=x, y=values, width=1.4, show_value=False)
        chart = line_chart(f"optimizer-{i}", alt, [line], x_label=x_label, size=(310, 175))
        charts.append({"title": title, "svg": chart})
    return charts
