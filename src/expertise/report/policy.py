"""The page of policies, `policy.html`: outcomes, and when a composed policy leans on which skill."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from expertise.report.colours import MAX_DOMAINS, signed_scale
from expertise.report.line_charts import Line, line_chart
from expertise.report.page import render_page
from expertise.report.records import Curve, Episode, Group, Metric, PolicyRecord
from expertise.report.skills import similarity, spectrum
from expertise.report.svg_charts import dot_map, interval_bar, same_scale, timeline
from expertise.report.text import listing, number, signed

PAGE = "policy.html"
_TITLES = {
    "normalized_reward": "normalised reward",
    "cost": "cost per episode",
    "normalized_cost": "cost / limit",
    "success": "success rate",
}
_COST = "normalized_cost"
_LIMITS = {_COST: 1.0}
"""Metric → the value that should not be passed."""

_ALIKE = 0.05
"""Means of weights that differ by no more count as the same."""

_BEFORE = 10
"""Steps before a cost that count as leading to it."""


def render(record: PolicyRecord) -> str:
    """Draw the page: one HTML file that loads nothing. The same record gives the same text."""
    skills, trace = record.skills or (), record.trace or Episode()
    return render_page(
        "policy.html",
        title=record.title,
        subtitle=record.environment,
        headline=_headline(record),
        lede=_lede(trace),
        groups=_bars(record.groups),
        curves=_curves(record.curves),
        episode=_episode(trace),
        maps=_maps(trace),
        similarity=similarity(skills, record.similarity or {}),
        proposals=record.proposals or (),
        spectrum=spectrum(skills),
        versions=list(record.versions.items()),
        notes=record.notes,
    )


def metric_title(metric: str) -> str:
    """The words for a metric."""
    return _TITLES.get(metric, metric.replace("_", " "))


def _lede(trace: Episode) -> str:
    """The sentence of `leaning`, after the name of the episode where that does not go without saying."""
    said = leaning(trace)
    return f"{trace.where}: {said[0].lower()}{said[1:]}" if said and trace.where else said


def _headline(record: PolicyRecord) -> str:
    """The outcome of our policy in the first group that has it, and of the best of the others."""
    ours = record.ours
    for group in record.groups:
        setting = next((metric.setting for metric in group.metrics if metric.setting), "")
        found = {
            metric.name: {row.name: row.mean for row in metric.rows}
            for metric in group.metrics
            if metric.setting == setting
        }
        costs = found.pop(_COST, {})
        metric, means = next(((m, means) for m, means in found.items() if ours in means), ("", {}))
        if not means:
            continue
        digits = 0 if abs(means[ours]) >= 50 else 2
        words = f"{ours} reaches {metric_title(metric)} {signed(means[ours], digits)}"
        rivals = {name: value for name, value in means.items() if name != ours}
        which = "the best of the others"
        if ours in costs:
            words += f" at {signed(costs[ours])} of the cost limit"
            rivals = {name: value for name, value in rivals.items() if costs.get(name, 1.0) < 1}
            which = "the best other safe policy"
        if rivals:
            best = max(rivals, key=lambda name: rivals[name])
            words += f"; {which}, {best}, {signed(rivals[best], digits)}"
        return f"{setting}: {words}." if setting else f"{words}."
    number_of = sum(len(metric.rows) for group in record.groups for metric in group.metrics[:1])
    if number_of == 1:
        return "What one policy does, and what it earns."
    return f"{number_of} policies, side by side." if number_of else "No policy has acted yet."


def _bars(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One block per group, one list of bars per metric in it."""
    blocks = [(group.title, [_metric(metric) for metric in group.metrics if metric.rows]) for group in groups]
    return [{"title": title, "metrics": metrics} for title, metrics in blocks if metrics]


def _metric(metric: Metric) -> dict[str, Any]:
    limit, reach = _LIMITS.get(metric.name), []
    for row in metric.rows:
        error = row.error or 0.0
        reach += [row.mean - error, row.mean + error, *([] if row.paper is None else [row.paper])]
    high = max([*reach, limit or 0.0, 0.0])
    low = min(0.0, *reach)
    span = (low, high + 0.03 * ((high - low) or 1.0))
    digits = 0 if high - low >= 50 else 2
    body = []
    for row in metric.rows:
        error, beside = row.error or 0.0, "" if row.paper is None else number(row.paper, digits)
        alt = f"{row.name}: {row.mean:.{digits}f} ± {error:.{digits}f}{f', paper {beside}' if beside else ''}"
        body.append(
            {
                "name": row.name,
                "svg": interval_bar(row.mean, error, span, alt, row.paper, limit),
                "value": signed(row.mean, digits),
                "error": number(error, digits) if error else "",
                "paper": beside,
            }
        )
    title = metric_title(metric.name)
    return {
        "title": f"{metric.setting}: {title}" if metric.setting else title,
        "rows": body,
        "limit": limit,
        "has_paper": any(row.paper is not None for row in metric.rows),
    }


def _curves(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One chart per entry: a line per row over numbers of trajectories or steps."""
    charts = []
    for index, curve in enumerate(curves):
        lines = {name: points for name, points in curve.lines.items() if points}
        if not lines:
            continue

        def place(x: float, log: bool = curve.log) -> float:
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
        ticks = sorted({float(x) for points in lines.values() for x, *_ in points})
        ends = listing(f"{line.label} ends at {line.y[-1]:.3g}" for line in drawn)
        svg = line_chart(
            f"curve-{index}",
            f"{curve.title}: {ends}.",
            drawn,
            x_label=curve.x_label,
            ticks=[(place(x), f"{x:g}") for x in ticks] if curve.log else (),
        )
        charts.append({"title": curve.title, "svg": svg})
    return charts


def _episode(trace: Episode) -> dict[str, Any] | None:
    """Alpha over time of the first episode, under its pictures; where nothing is weighed up, those alone."""
    series = _series(trace)
    # Nothing is loaded: a picture is in the page, or it is not shown.
    frames = [
        (image, step)
        for image, step in zip(trace.frames, trace.frame_steps, strict=False)
        if image.startswith("data:image/")
    ]
    if not series and not frames:
        return None
    shown = {"method": trace.method, "frames": frames, "svg": None}
    if not series:
        return shown
    flat = [value for each in series.values() for value in each]
    span = (min(0.0, *flat), max(0.0, *flat) or 1.0)
    costly, risky = [cost > 0 for cost in trace.costs], [risk > 0 for risk in trace.risk or ()]
    means = listing(f"{name} {statistics.fmean(each):.2f}" for name, each in series.items())
    steps = len(trace.alpha or ())
    alt = f"Alpha over {steps} steps; means: {means}."
    return shown | {
        "svg": timeline(list(series.values()), span, alt, costly, risky),
        "low": signed(span[0]),
        "high": signed(span[1]),
        "steps": steps,
        "legend": [(i % MAX_DOMAINS, name) for i, name in enumerate(series)],
        "has_cost": any(costly),
        "has_risk": any(risky),
    }


def leaning(trace: Episode) -> str:
    """A sentence on when the policy leans on its safety skill, with numbers; empty: it has none."""
    weights = _series(trace).get(trace.safety)
    if weights is None:
        return ""
    marked, where = _dangerous(trace, len(weights))
    there = [w for w, is_there in zip(weights, marked, strict=True) if is_there]
    elsewhere = [w for w, is_there in zip(weights, marked, strict=True) if not is_there]
    if not there or not elsewhere:
        return f"The mean weight of {trace.safety} is {signed(statistics.fmean(weights))}."
    near, far = statistics.fmean(there), statistics.fmean(elsewhere)
    return (
        f"{where} ({len(there)} of {len(weights)} steps) the mean weight of {trace.safety} is "
        f"{signed(near)}, elsewhere {signed(far)}: {_verdict(near, far)}."
    )


def _verdict(there: float, elsewhere: float) -> str:
    if abs(there - elsewhere) <= _ALIKE:
        return "it hardly tells the two apart"
    if there < elsewhere:
        return "it leans on safety less there"
    # A negative weight takes the skill away, only less so than elsewhere.
    return "it leans on safety there" if there > 0 else "it leans on safety nowhere, there least against it"


def _dangerous(trace: Episode, steps: int) -> tuple[list[bool], str]:
    """A mark for each step that leads to a cost, as far as is known, and the words for that knowledge."""
    risk = trace.risk or ()
    if len(risk) == steps:
        ahead = [value > 0 for value in risk]
        if any(ahead) and not all(ahead):
            return ahead, "Where the safety critic sees a cost ahead"
        edge = sorted(risk)[steps - max(1, steps // 4)]
        return [value >= edge for value in risk], "In the quarter of steps that the safety critic fears most"
    near = [any(cost > 0 for cost in trace.costs[i : i + _BEFORE + 1]) for i in range(steps)]
    return near, f"Up to {_BEFORE} steps before a cost"


def _maps(trace: Episode) -> list[dict[str, Any]]:
    """The places of the agent, coloured by the weight of the safety skill (or of each), and by cost."""
    places, series = trace.positions, _series(trace)
    if not places:
        return []
    shown = [trace.safety] if trace.safety in series else list(series)[:4]
    wanted = [(f"weight of {name}", series[name], "weight") for name in shown]
    found = []
    for title, values, legend in [*wanted, ("cost", list(trace.costs), "cost of the step")]:
        if len(values) != len(places):
            continue
        scale = signed_scale(values)
        alt = f"{len(places)} places, {title} from {signed(min(values))} to {signed(max(values))}."
        found.append(
            {
                "title": title,
                "what": legend,
                "svg": dot_map(places, values, scale, alt),
                "legend": scale.legend,
                "note": "" if same_scale(places) else "Both axes fill their room: their scales differ.",
            }
        )
    return found


def _series(trace: Episode) -> dict[str, list[float]]:
    """Name → its weight at each step; empty where nothing is weighed up."""
    alpha = trace.alpha or ()
    if not alpha or any(len(row) != len(trace.names) for row in alpha):
        return {}
    return {name: [row[i] for row in alpha] for i, name in enumerate(trace.names)}
