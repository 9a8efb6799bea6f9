"""Figures of the experts on a language model's page: parts per token, load, domains, and marked text."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from expertise.report.colours import MAX_DOMAINS, Scale, count_scale, value_scale
from expertise.report.line_charts import Line, line_chart, token_axis
from expertise.report.records import Expert, LanguageModelRecord, Layer, Token
from expertise.report.svg_charts import heat_map, load_bars
from expertise.report.text import listing, whole

_MAX_LINES = 8
_MAX_COLUMNS = 40


def _histogram(record: LanguageModelRecord) -> list[list[int]]:
    """Tokens with 1, 2, 3, … parts, per layer, without the empty tail."""
    found = []
    for layer in record.parts_per_token.histogram or ():
        counts = list(layer)
        while counts and not counts[-1]:
            counts.pop()
        found.append(counts)
    return found


def constant_counts(record: LanguageModelRecord) -> list[int] | None:
    """Parts of every token, per layer, where it is the same for all tokens; None where it varies."""
    histogram = [layer for layer in _histogram(record) if layer]
    if histogram:
        same = all(sum(count > 0 for count in layer) == 1 for layer in histogram)
        return [len(layer) for layer in histogram] if same else None
    parts = record.parts_per_token
    if parts.std is not None and parts.std < 1e-6:
        return [round(value) for value in parts.layers if value is not None] or None
    return None


def _largest_count(record: LanguageModelRecord) -> int:
    """The most parts that any token may take or took."""
    seen = [len(layer) for layer in _histogram(record)]
    seen += [len(parts) for token in _tokens(record) for parts in token.parts]
    return max([1, *seen, (record.summary and record.summary.max_parts) or 1])


def _tokens(record: LanguageModelRecord) -> list[Token]:
    return [token for passage in record.passages for token in passage.tokens]


def _over_time(record: LanguageModelRecord) -> dict[str, Any] | None:
    points = [
        (point, parts)
        for point in record.curves.evaluations
        if (parts := point.parts_per_token) is not None and parts.mean is not None
    ]
    if len(points) < 2:
        return None
    x, x_label = token_axis([point for point, _ in points])
    names = record.layer_names
    lines = []
    if 1 < len(names) <= _MAX_LINES and all(
        len(parts.layers) == len(names) and None not in parts.layers for _, parts in points
    ):
        for i, name in enumerate(names):
            y = [mean for _, parts in points if (mean := parts.layers[i]) is not None]
            colour = f"y{round(i * 7 / (len(names) - 1))}"
            lines.append(Line(x=x, y=y, label=name, colour=colour, width=1.6))
    means = [parts.mean for _, parts in points if parts.mean is not None]
    lines.append(Line(x=x, y=means, label="mean", colour="ink", width=2.6))
    alt = f"Mean number of experts per token: from {means[0]:.2f} to {means[-1]:.2f}."
    return {
        "svg": line_chart("parts", alt, lines, x_label=x_label, size=(390, 270)),
        "layers": len(lines) > 1,
    }


def _spread_bars(record: LanguageModelRecord, scale: Scale) -> list[dict[str, Any]]:
    """Per layer, the share of tokens in each class of counts."""
    means = record.parts_per_token.layers
    found = []
    for i, (name, counts) in enumerate(zip(record.layer_names, _histogram(record), strict=False)):
        total = sum(counts)
        shares = [0.0] * len(scale.labels)
        for above, count in enumerate(counts):
            shares[scale.index(above + 1.0)] += count / total if total else 0.0
        segments = [
            {"step": step, "label": label, "share": share}
            for (step, label), share in zip(scale.legend, shares, strict=True)
        ]
        found.append({"name": name, "mean": means[i] if i < len(means) else None, "segments": segments})
    return found


def _table(record: LanguageModelRecord) -> dict[str, Any] | None:
    """Layer × domain, with the mean of each layer and of each domain."""
    parts = record.parts_per_token
    per_layer = {name: v for name in record.domains if (v := (parts.domains_by_layer or {}).get(name))}
    if not per_layer and not parts.layers:
        return None
    means = {name: parts.domains.get(name) for name in per_layer}
    values = [v for column in [*per_layer.values(), parts.layers, means.values()] for v in column]
    # The light half of the palette: means lie close together, and dark means "many" in the bars above.
    scale = value_scale([value for value in values if value is not None], digits=2, most=5)

    def cell(value: float | None) -> tuple[float | None, int]:
        return value, 0 if value is None else scale.step(value)

    columns = [*per_layer.values(), parts.layers]
    body = [
        (name, [cell(column[i] if i < len(column) else None) for column in columns])
        for i, name in enumerate(record.layer_names)
    ]
    body.append(("all layers", [cell(value) for value in [*means.values(), parts.mean]]))
    return {"columns": [*per_layer, "all text"], "rows": body}


def _finding(record: LanguageModelRecord) -> str:
    """The one sentence that the figures show."""
    parts = record.parts_per_token
    sentences = []
    by_domain = {name: mean for name in record.domains if (mean := parts.domains.get(name))}
    if len(by_domain) > 1:
        most, least = max(by_domain, key=by_domain.__getitem__), min(by_domain, key=by_domain.__getitem__)
        sentences.append(
            f"Tokens of {most} take the most experts ({by_domain[most]:.2f} on average), "
            f"tokens of {least} the fewest ({by_domain[least]:.2f})."
        )
    layers = [mean for mean in parts.layers if mean is not None]
    if 1 < len(layers) == len(record.layers):
        names = record.layer_names
        top, low = layers.index(max(layers)), layers.index(min(layers))
        sentences.append(
            f"By depth, {names[top]} uses the most ({layers[top]:.2f}), "
            f"{names[low]} the fewest ({layers[low]:.2f})."
        )
    summary = record.summary
    if summary and summary.share_at_max_parts is not None and summary.max_parts is not None:
        share = 100 * summary.share_at_max_parts
        sentences.append(f"In {share:.0f} % of cases the limit of {summary.max_parts} is reached.")
    return " ".join(sentences)


def counts(record: LanguageModelRecord) -> dict[str, Any]:
    """Charts and tables of the section on parts per token, or the sentence that stands for them."""
    same = constant_counts(record)
    if same:
        if len(set(same)) == 1:
            sentence = f"Every token takes exactly {same[0]} expert{'s' * (same[0] > 1)} in each layer"
        else:
            each = [f"{k} in {name}" for k, name in zip(same, record.layer_names, strict=False)]
            sentence = f"Every token takes the same number of experts: {listing(each)}"
        return {"constant": f"{sentence}: the router chooses a fixed number, so there is no spread to draw."}
    scale = count_scale(_largest_count(record))
    return {
        "constant": "",
        "finding": _finding(record),
        "over_time": _over_time(record),
        "bars": _spread_bars(record, scale),
        "legend": scale.legend,
        "table": _table(record),
        "any": bool(record.summary and record.summary.parts_per_token),
    }


def _height(num_rows: int, num_maps: int) -> int:
    """Pixels of a map with so many rows; one of many maps is smaller."""
    wanted, least = (260, 3.0) if num_maps <= 8 else (130, 2.0)
    return round(num_rows * min(16.0, max(least, wanted / max(num_rows, 1))))


def _sample(points: Sequence[Any]) -> Sequence[Any]:
    """At most so many points, the first and the last among them."""
    if len(points) <= _MAX_COLUMNS:
        return points
    return [points[round(i * (len(points) - 1) / (_MAX_COLUMNS - 1))] for i in range(_MAX_COLUMNS)]


def load(record: LanguageModelRecord) -> dict[str, Any]:
    """Per layer a map of load over time, and bars of the last load."""
    layers = record.layers
    maps, busiest = [], (0.0, 0, "")
    for i, (name, layer) in enumerate(zip(record.layer_names, layers, strict=True)):
        final = list(layer.load)
        if not final:
            continue
        history = _sample(
            [
                (point.step or 0, loads[i])
                for point in record.curves.evaluations
                if len(loads := point.loads or ()) > i and len(loads[i]) == len(final)
            ]
        )
        busiest = max(busiest, (max(final), final.index(max(final)), name))
        height = _height(len(final), len(layers))
        steps = [f"step {whole(step)}" for step, _ in history]
        svg = heat_map(
            [values for _, values in history],
            column_names=steps,
            row_names=[f"expert {e}" for e in range(len(final))],
            alt=f"Load of each expert of {name} over time, as a multiple of the mean load.",
            unit="× the mean load",
            order=range(len(history)),
            height=height,
        )
        spread = f"busiest {max(final):.2f}×, idlest {min(final):.2f}×"
        maps.append(
            {
                "name": name,
                "spread": spread,
                "svg": svg if len(history) > 1 else None,
                "bars": load_bars(final, height, f"Last load of each expert of {name}: {spread} the mean."),
                "first": steps[0] if steps else "",
                "last": steps[-1] if steps else "",
                "num_parts": len(final),
            }
        )
    everything = [value for layer in layers for value in layer.load]
    unused = sum(value == 0 for value in everything)
    if unused == 0:
        finding = "No expert is unused on the validation text."
    else:
        are = "is" if unused == 1 else "are"
        finding = f"{unused} of {len(everything)} experts {are} unused on the validation text."
    if maps:
        finding += (
            f" The busiest, expert {busiest[1]} of {busiest[2]}, takes {busiest[0]:.2f} times the mean load."
        )
    return {"maps": maps, "finding": finding, "over_time": any(each["svg"] for each in maps)}


def _lifts(layer: Layer, num_domains: int) -> list[list[float]]:
    """Share of each expert's tokens from each domain, over the share of all tokens."""
    if len(layer.domain_prior) != num_domains:
        return []
    return [
        [share / p if p else 1.0 for share, p in zip(shares, layer.domain_prior, strict=True)]
        for shares in layer.domain_share
        if len(shares) == num_domains
    ]


def specialists(record: LanguageModelRecord) -> dict[str, Any] | None:
    """Per layer a map of experts by domains; None where fewer than two domains leave nothing to compare."""
    names = record.domains
    if len(names) < 2:
        return None
    maps, strongest = [], (0.0, 0, "", "")
    for name, layer in zip(record.layer_names, record.layers, strict=True):
        lifts = _lifts(layer, len(names))
        if not lifts:
            continue
        lead = [max(range(len(names)), key=lifts[e].__getitem__) for e in range(len(lifts))]
        order = sorted(range(len(lifts)), key=lambda e: (lead[e], -lifts[e][lead[e]], e))
        information = layer.mutual_information
        # Of experts with hardly a token a high lift says nothing.
        for e, load_of in enumerate((layer.load or [1.0] * len(lifts))[: len(lifts)]):
            if load_of >= 0.1:
                strongest = max(strongest, (lifts[e][lead[e]], e, name, names[lead[e]]))
        svg = heat_map(
            lifts,
            column_names=[f"expert {e}" for e in range(len(lifts))],
            row_names=names,
            alt=f"Experts of {name} by domain: how much more often than by chance each sees a domain.",
            unit="× its share of all text",
            order=order,
            height=max(18, min(24, 200 // len(names))) * len(names),
        )
        maps.append(
            {
                "name": name,
                "svg": svg,
                "information": None if information is None else f"{information:.3f}",
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


def learnt(record: LanguageModelRecord) -> list[dict[str, Any]]:
    """Per layer a table of its experts, those of a domain together."""
    rank = {name: i for i, name in enumerate(record.domains)}

    def place(part: Expert) -> int:
        return len(rank) if part.domain is None else rank.get(part.domain, len(rank))

    return [
        {
            "name": name,
            "parts": sorted(layer.parts, key=lambda part: (place(part), -(part.lift or 0.0))),
            "most": max([part.load or 0.0 for part in layer.parts]) or 1.0,
            "colours": list(record.domains[:MAX_DOMAINS]),
        }
        for name, layer in zip(record.layer_names, record.layers, strict=True)
        if layer.parts
    ]


def passages(record: LanguageModelRecord) -> dict[str, Any] | None:
    """Passages, choices of layers, legends, and the data of the page's script; None without passages."""
    found = [passage for passage in record.passages if passage.tokens]
    layers = range(max([len(token.parts) for token in _tokens(record)], default=0))
    if not found or not layers:
        return None
    same, names = constant_counts(record), record.layer_names
    # Where all tokens take as many parts, their number shows nothing: the sum of their gates may.
    unit = "sum of the gates" if same else "experts"

    def values(token: Token) -> list[float]:
        """Value in each layer."""
        if same:
            return [sum(token.gates[i]) if i < len(token.gates) else 0.0 for i in layers]
        return [float(len(token.parts[i])) if i < len(token.parts) else 0.0 for i in layers]

    table = [[values(token) for token in passage.tokens] for passage in found]
    everything = [row for rows in table for row in rows]
    # The single layers share one scale, so that they can be compared.
    shared = value_scale(list(itertools.chain(*everything))) if same else count_scale(_largest_count(record))
    choices = [(str(i), names[i], unit, shared) for i in layers]
    if len(layers) > 1:
        of_all = value_scale([statistics.fmean(row) for row in everything])
        choices = [("all", "all layers", f"{unit}, mean of the layers", of_all), *choices]
        table = [[[statistics.fmean(row), *row] for row in rows] for rows in table]
    return {
        "passages": found,
        "choices": [
            {"value": value, "label": label, "legend": scale.legend, "what": words}
            for value, label, words, scale in choices
        ],
        "gates": bool(same),
        "data": {
            "choices": [value for value, *_ in choices],
            "layers": names,
            "steps": [
                [scale.digits(row[c] for row in rows) for c, (*_, scale) in enumerate(choices)]
                for rows in table
            ],
            "parts": [[token.parts for token in passage.tokens] for passage in found],
            "gates": [
                [[[round(g, 2) for g in layer] for layer in token.gates] for token in passage.tokens]
                for passage in found
            ],
            "domains": record.domains,
            # Per layer, the domain of each expert that has one clearly.
            "experts": [
                {str(p.id): p.domain for p in layer.parts if p.domain is not None and (p.lift or 0) >= 1.3}
                for layer in record.layers
            ],
        },
    }
