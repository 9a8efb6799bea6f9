"""Parts of the page of policies: bars, curves, an episode, maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expertise.report.colours import MAX_DOMAINS, signed_scale
from expertise.report.figures import Line, line_chart
from expertise.report.policy_charts import dot_map, interval_bar, same_scale, timeline
from expertise.report.record import look, mean, rows
from expertise.report.skills_parts import legend
from expertise.report.text import listing, number, signed

TITLES = {
    "return": "return",
    "normalized_reward": "normalised reward",
    "cost": "cost per episode",
    "normalized_cost": "cost / limit",
    "success": "success rate",
}
"""Metric → what it is called."""
LIMITS = {"normalized_cost": 1.0}
"""Metric → what should not be passed."""

_ALIKE = 0.05
"""Means of weights that differ by no more count as the same."""

_BEFORE = 10
"""Steps before a cost that count as leading to it."""


def metric_title(metric: str) -> str:
    """What a metric is called."""
    return TITLES.get(metric, metric.replace("_", " "))


def bars(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One block per group, one list of bars per metric in it."""
    found = []
    for group in rows(record, "groups"):
        metrics = [_bars(metric) for metric in rows(group, "metrics") if rows(metric, "rows")]
        if metrics:
            title, note = (str(look(group, key, default="")) for key in ("title", "note"))
            found.append(
                {
                    "title": title,
                    "note": note,
                    "metrics": metrics,
                    "has_limit": any(metric["limit"] for metric in metrics),
                    "has_paper": any(metric["has_paper"] for metric in metrics),
                }
            )
    return found


def _bars(metric: Mapping[str, Any]) -> dict[str, Any]:
    name = str(look(metric, "name", default=""))
    limit = LIMITS.get(name)
    lines = [
        (
            str(look(row, "name", default="")),
            float(look(row, "mean", default=0.0)),
            float(look(row, "error", default=0.0)),
            None if look(row, "paper") is None else float(look(row, "paper")),
        )
        for row in rows(metric, "rows")
    ]
    reach = [
        value for _, m, e, paper in lines for value in (m - e, m + e, *([] if paper is None else [paper]))
    ]
    high = max([*reach, limit or 0.0, 0.0])
    low = min(0.0, *reach)
    span = (low, high + 0.03 * ((high - low) or 1.0))
    digits = 0 if high - low >= 50 else 2
    body = []
    for row, m, e, paper in lines:
        beside = "" if paper is None else number(paper, digits)
        alt = f"{row}: {m:.{digits}f} ± {e:.{digits}f}{f', paper {beside}' if beside else ''}"
        body.append(
            {
                "name": row,
                "svg": interval_bar(m, e, span, alt, paper, limit),
                "value": signed(m, digits),
                "error": number(e, digits) if e else "",
                "paper": beside,
            }
        )
    setting = str(look(metric, "setting", default=""))
    return {
        "title": f"{setting}: {metric_title(name)}" if setting else metric_title(name),
        "rows": body,
        "limit": limit,
        "has_paper": any(paper is not None for *_, paper in lines),
    }


def curves(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One chart per entry: a line per row over numbers of trajectories or steps."""
    charts = []
    for index, curve in enumerate(rows(record, "curves")):
        lines = {str(name): points for name, points in look(curve, "lines", default={}).items() if points}
        if not lines:
            continue
        ticks = sorted({float(x) for points in lines.values() for x, *_ in points})
        log = bool(look(curve, "log", default=False))

        def place(x: float, log: bool = log) -> float:
            return math.log10(x) if log else x

        drawn = [
            Line(
                x=[place(float(x)) for x, *_ in points],
                y=[float(y) for _, y, *_ in points],
                label=name,
                colour=f"k{i}",
                show_value=False,
            )
            for i, (name, points) in enumerate(list(lines.items())[:MAX_DOMAINS])
        ]
        title = str(look(curve, "title", default=""))
        ends = listing(f"{line.label} ends at {line.y[-1]:.3g}" for line in drawn)
        charts.append(
            {
                "title": title,
                "svg": line_chart(
                    f"curve-{index}",
                    f"{title}: {ends}.",
                    drawn,
                    x_label=str(look(curve, "x_label", default="")),
                    ticks=[(place(x), f"{x:g}") for x in ticks] if log else (),
                ),
            }
        )
    return charts


def safety_of(names: Sequence[str]) -> str | None:
    """The skill that is for safety, by its name; None: none is."""
    return next((n for n in names if any(word in n.lower() for word in ("safe", "cost"))), None)


def episode(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Alpha over time of the first episode, under its pictures; where nothing is weighed up, those alone."""
    trace = look(record, "trace")
    names, alpha = _alpha(trace)
    # Nothing is loaded: a picture is in the page, or it is not shown.
    frames = [
        (str(image), int(step))
        for image, step in zip(rows(trace, "frames"), rows(trace, "frame_steps"), strict=False)
        if str(image).startswith("data:image/")
    ]
    if not names and not frames:
        return None
    shown = {"method": str(look(trace, "method", default="")), "frames": frames}
    return shown | (_weights(trace, names, alpha) if names else {"svg": None})


def _weights(trace: Any, names: Sequence[str], alpha: Sequence[Sequence[float]]) -> dict[str, Any]:
    series = [[row[i] for row in alpha] for i in range(len(names))]
    flat = [value for each in series for value in each]
    span = (min(0.0, *flat), max(0.0, *flat) or 1.0)
    costly = [float(cost) > 0 for cost in rows(trace, "costs")]
    risky = [float(risk) > 0 for risk in rows(trace, "risk")]
    means = listing(f"{name} {mean(each):.2f}" for name, each in zip(names, series, strict=True))
    return {
        "svg": timeline(series, span, f"Alpha over {len(alpha)} steps; means: {means}.", costly, risky),
        "low": signed(span[0]),
        "high": signed(span[1]),
        "steps": len(alpha),
        "legend": [(i % MAX_DOMAINS, name) for i, name in enumerate(names)],
        "has_cost": any(costly),
        "has_risk": any(risky),
    }


def leaning(trace: Any) -> str:
    """When the policy leans on its safety skill, in a sentence with numbers; empty: there is none."""
    names, alpha = _alpha(trace)
    safety = safety_of(names)
    if safety is None:
        return ""
    weights = [row[names.index(safety)] for row in alpha]
    marked, where = _dangerous(trace, len(weights))
    there = [w for w, is_there in zip(weights, marked, strict=True) if is_there]
    elsewhere = [w for w, is_there in zip(weights, marked, strict=True) if not is_there]
    if not there or not elsewhere:
        return f"The mean weight of {safety} is {signed(mean(weights))}."
    near, far = mean(there), mean(elsewhere)
    return (
        f"{where} ({len(there)} of {len(weights)} steps) the mean weight of {safety} is {signed(near)}, "
        f"elsewhere {signed(far)}: {_verdict(near, far)}."
    )


def _verdict(there: float, elsewhere: float) -> str:
    if abs(there - elsewhere) <= _ALIKE:
        return "it hardly tells the two apart"
    if there < elsewhere:
        return "it leans on safety less there"
    # A negative weight takes the skill away, only less so than elsewhere.
    return "it leans on safety there" if there > 0 else "it leans on safety nowhere, there least against it"


def _dangerous(trace: Any, steps: int) -> tuple[list[bool], str]:
    """Which steps lead to a cost, as far as is known, and how that is known."""
    risk = [float(value) for value in rows(trace, "risk")]
    if len(risk) == steps:
        ahead = [value > 0 for value in risk]
        if any(ahead) and not all(ahead):
            return ahead, "Where the safety critic sees a cost ahead"
        edge = sorted(risk)[steps - max(1, steps // 4)]
        return [value >= edge for value in risk], "In the quarter of steps that the safety critic fears most"
    costs = [float(value) for value in rows(trace, "costs")]
    near = [any(cost > 0 for cost in costs[i : i + _BEFORE + 1]) for i in range(steps)]
    return near, f"Up to {_BEFORE} steps before a cost"


def maps(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the agent was, coloured by the weight of the safety skill (or of each), and by cost."""
    trace = look(record, "trace")
    places = rows(trace, "positions")
    names, alpha = _alpha(trace)
    if not places:
        return []
    safety = safety_of(names)
    shown = [safety] if safety else names[:4]
    found = []
    wanted = [(f"weight of {n}", [row[names.index(n)] for row in alpha], "weight") for n in shown]
    if "costs" in (trace or {}):
        wanted.append(("cost", [float(cost) for cost in rows(trace, "costs")], "cost of the step"))
    for title, values, what in wanted:
        if len(values) != len(places):
            continue
        scale = signed_scale(values)
        low, high = signed(min(values)), signed(max(values))
        alt = f"{len(places)} places, {title} from {low} to {high}."
        found.append(
            {
                "title": title,
                "what": what,
                "svg": dot_map(places, values, scale, alt),
                "legend": legend(scale),
                "note": "" if same_scale(places) else "Both axes fill their room: their scales differ.",
            }
        )
    return found


def _alpha(trace: Any) -> tuple[list[str], list[list[float]]]:
    names = [str(name) for name in rows(trace, "names")]
    alpha = [[float(value) for value in row] for row in rows(trace, "alpha")]
    if not alpha or any(len(row) != len(names) for row in alpha):
        return [], []
    return names, alpha
