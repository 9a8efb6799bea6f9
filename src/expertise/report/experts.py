"""Who does what: load per expert over time, experts by domain, and what each expert learnt."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from expertise.report.colours import MAX_DOMAINS, RATIO_EDGES
from expertise.report.heatmap import HeatMap, bars
from expertise.report.record import domains, layer_names, look, rows
from expertise.report.text import whole

_MAX_COLUMNS = 40


def ratio_legend() -> list[tuple[int, str]]:
    """Steps and words of the diverging palette."""
    edges = [f"{round(edge, 2):g}" for edge in RATIO_EDGES]
    words = [
        f"under {edges[0]}",
        *(f"{a}–{b}" for a, b in itertools.pairwise(edges)),
        f"over {edges[-1]}",
    ]
    return list(enumerate(words))


def _height(num_rows: int, num_maps: int) -> int:
    """Pixels of a map with so many rows; one of many maps is smaller."""
    wanted, least = (260, 3.0) if num_maps <= 8 else (130, 2.0)
    return round(num_rows * min(16.0, max(least, wanted / max(num_rows, 1))))


def _sample(points: Sequence[Any]) -> list[Any]:
    """At most so many points, the first and the last among them."""
    if len(points) <= _MAX_COLUMNS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (_MAX_COLUMNS - 1))] for i in range(_MAX_COLUMNS)]


def load(record: Mapping[str, Any]) -> dict[str, Any]:
    """Per layer a map of load over time, and bars of the last load."""
    layers = rows(record, "layers")
    maps, unused, busiest = [], 0, (0.0, 0, "")
    for i, (name, layer) in enumerate(zip(layer_names(record), layers, strict=True)):
        final = [float(value) for value in rows(layer, "load")]
        if not final:
            continue
        history = [
            (point, [float(value) for value in point["loads"][i]])
            for point in rows(record, "curves", "evaluations")
            if len(rows(point, "loads")) > i and len(point["loads"][i]) == len(final)
        ]
        history = _sample(history)
        unused += sum(value == 0 for value in final)
        busiest = max(busiest, (max(final), final.index(max(final)), name))
        height = _height(len(final), len(layers))
        steps = [f"step {whole(look(point, 'step', default=0))}" for point, _ in history]
        heat = HeatMap(
            columns=[values for _, values in history],
            column_names=steps,
            row_names=[f"expert {e}" for e in range(len(final))],
            alt=f"Load of each expert of {name} over time, as a multiple of the mean load.",
            unit="× the mean load",
            order=range(len(history)),
        )
        spread = f"busiest {max(final):.2f}×, idlest {min(final):.2f}×"
        maps.append(
            {
                "name": name,
                "spread": spread,
                "svg": heat.svg(height) if len(history) > 1 else None,
                "bars": bars(final, height, f"Last load of each expert of {name}: {spread} the mean."),
                "first": steps[0] if steps else "",
                "last": steps[-1] if steps else "",
                "num_parts": len(final),
            }
        )
    routed = sum(len(rows(layer, "load")) for layer in layers)
    if unused == 0:
        finding = "No expert is unused on the validation text."
    else:
        finding = (
            f"{unused} of {routed} experts {'is' if unused == 1 else 'are'} unused on the validation text."
        )
    if maps:
        finding += (
            f" The busiest, expert {busiest[1]} of {busiest[2]}, takes {busiest[0]:.2f} times the mean load."
        )
    return {"maps": maps, "finding": finding, "over_time": any(each["svg"] for each in maps)}


def _lifts(layer: Mapping[str, Any], num_domains: int) -> list[list[float]]:
    """Share of each expert's tokens from each domain, over the share of all tokens."""
    prior = [float(value) for value in rows(layer, "domain_prior")]
    if len(prior) != num_domains:
        return []
    return [
        [float(share) / p if p else 1.0 for share, p in zip(shares, prior, strict=False)]
        for shares in rows(layer, "domain_share")
        if len(shares) == num_domains
    ]


def specialists(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Per layer a map of experts by domains; None where fewer than two domains leave nothing to compare."""
    names = domains(record)
    if len(names) < 2:
        return None
    maps, strongest = [], (0.0, 0, "", "")
    for name, layer in zip(layer_names(record), rows(record, "layers"), strict=True):
        lifts = _lifts(layer, len(names))
        if not lifts:
            continue
        lead = [max(range(len(names)), key=lifts[e].__getitem__) for e in range(len(lifts))]
        order = sorted(range(len(lifts)), key=lambda e: (lead[e], -lifts[e][lead[e]], e))
        # Of experts with hardly a token a high lift says nothing.
        loads = [float(value) for value in rows(layer, "load")] or [1.0] * len(lifts)
        for e, load_of in enumerate(loads[: len(lifts)]):
            if load_of >= 0.1:
                strongest = max(strongest, (lifts[e][lead[e]], e, name, names[lead[e]]))
        information = look(layer, "mutual_information")
        heat = HeatMap(
            columns=lifts,
            column_names=[f"expert {e}" for e in range(len(lifts))],
            row_names=names,
            alt=f"Experts of {name} by domain: how much more often than by chance each sees a domain.",
            unit="× its share of all text",
            order=order,
        )
        maps.append(
            {
                "name": name,
                "svg": heat.svg(max(18, min(24, 200 // len(names))) * len(names)),
                "information": None if information is None else f"{float(information):.3f}",
                "num_parts": len(lifts),
            }
        )
    if not maps:
        return None
    finding = (
        f"The strongest specialist is expert {strongest[1]} of {strongest[2]}: "
        f"tokens of {strongest[3]} reach it {strongest[0]:.1f} times as often "
        "as their share of the text would have it."
    )
    return {"maps": maps, "domains": names, "finding": finding if strongest[0] else ""}


def learnt(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per layer a table of its experts, those of a domain together."""
    names = domains(record)
    rank = {name: i for i, name in enumerate(names)}
    tables = []
    for name, layer in zip(layer_names(record), rows(record, "layers"), strict=True):
        parts = rows(layer, "parts")
        most = max([float(look(part, "load", default=0.0)) for part in parts], default=0.0)
        body = []
        for part in parts:
            domain = look(part, "domain")
            colour = rank.get(domain, MAX_DOMAINS)
            load_of = look(part, "load")
            body.append(
                {
                    "id": look(part, "id", default="–"),
                    "domain": domain,
                    "colour": colour if colour < MAX_DOMAINS else None,
                    "lift": look(part, "lift"),
                    "load": load_of,
                    "bar": 100 * float(load_of or 0.0) / most if most else 0.0,
                    "tokens": [str(token) for token in rows(part, "tokens")],
                }
            )
        body.sort(key=lambda row: (rank.get(row["domain"], len(rank)), -float(row["lift"] or 0.0)))
        if body:
            tables.append({"name": name, "rows": body, "domain_count": len({row["domain"] for row in body})})
    return tables
