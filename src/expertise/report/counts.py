"""How many parts each token took: over time, per layer, per domain, and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expertise.report.colours import Scale, count_scale, value_scale
from expertise.report.figures import Line, line_chart
from expertise.report.learning import pick, token_axis
from expertise.report.record import domains, layer_names, look, rows
from expertise.report.text import listing, number

_MAX_LINES = 8


def _histogram(record: Mapping[str, Any]) -> list[list[float]]:
    """Tokens with 1, 2, 3, … parts, per layer, without the empty tail."""
    found = []
    for layer in rows(record, "summary", "parts_per_token", "histogram"):
        counts = [float(count) for count in layer]
        while counts and not counts[-1]:
            counts.pop()
        found.append(counts)
    return found


def constant_counts(record: Mapping[str, Any]) -> list[int] | None:
    """Parts of every token, per layer, where it is the same for all tokens; None where it varies."""
    histogram = [layer for layer in _histogram(record) if layer]
    if histogram:
        if all(sum(count > 0 for count in layer) == 1 for layer in histogram):
            return [len(layer) for layer in histogram]
        return None
    if look(record, "summary", "parts_per_token", "std", default=1.0) < 1e-6:
        layers = rows(record, "summary", "parts_per_token", "layers")
        return [round(float(value)) for value in layers] or None
    return None


def largest_count(record: Mapping[str, Any]) -> int:
    """The most parts that any token may take or took."""
    seen = [len(layer) for layer in _histogram(record)]
    for passage in rows(record, "passages"):
        for token in rows(passage, "tokens"):
            seen += [len(parts) for parts in rows(token, "parts")]
    return max([1, *seen, *_limit(record)])


def _limit(record: Mapping[str, Any]) -> list[int]:
    limit = look(record, "summary", "max_parts")
    return [] if limit is None else [int(limit)]


def _over_time(record: Mapping[str, Any]) -> dict[str, Any] | None:
    evaluations = rows(record, "curves", "evaluations")
    values, points = pick(evaluations, "parts_per_token", "mean")
    if len(values) < 2:
        return None
    x, x_label = token_axis(points)
    names = layer_names(record)
    lines = []
    if 1 < len(names) <= _MAX_LINES and all(
        len(rows(point, "parts_per_token", "layers")) == len(names) for point in points
    ):
        for i, name in enumerate(names):
            y = [float(point["parts_per_token"]["layers"][i]) for point in points]
            colour = f"y{round(i * 7 / (len(names) - 1))}"
            lines.append(Line(x=x, y=y, label=name, colour=colour, width=1.6))
    lines.append(Line(x=x, y=values, label="mean", colour="ink", width=2.6))
    alt = f"Mean number of experts per token: from {values[0]:.2f} to {values[-1]:.2f}."
    return {
        "svg": line_chart("parts", alt, lines, x_label=x_label, size=(390, 270)),
        "layers": len(lines) > 1,
    }


def _spread_bars(record: Mapping[str, Any], scale: Scale) -> list[dict[str, Any]]:
    """Per layer, the share of tokens in each class of counts."""
    means = rows(record, "summary", "parts_per_token", "layers")
    found = []
    for i, (name, counts) in enumerate(zip(_names(record), _histogram(record), strict=False)):
        total = sum(counts)
        shares = [0.0] * len(scale.labels)
        for above, count in enumerate(counts):
            shares[scale.index(above + 1.0)] += count / total if total else 0.0
        segments = [
            {"step": step, "label": label, "share": share}
            for step, label, share in zip(scale.steps, scale.labels, shares, strict=True)
        ]
        found.append({"name": name, "mean": means[i] if i < len(means) else None, "segments": segments})
    return found


def _names(record: Mapping[str, Any]) -> list[str]:
    names = layer_names(record)
    known = len(rows(record, "summary", "parts_per_token", "layers"))
    return names + [f"layer {i}" for i in range(len(names), known)]


def _table(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Layer × domain, with the mean of each layer and of each domain."""
    found = look(record, "summary", "parts_per_token", default={})
    columns = [name for name in domains(record) if rows(found, "domains_by_layer", name)]
    layers = rows(found, "layers")
    if not columns and not layers:
        return None
    per_layer = {name: rows(found, "domains_by_layer", name) for name in columns}
    values = [float(v) for column in [*per_layer.values(), layers] for v in column if v is not None]
    values += [
        float(look(found, "domains", name)) for name in columns if look(found, "domains", name) is not None
    ]
    # The light half of the palette: means lie close together, and dark means "many" in the bars above.
    scale = value_scale(values, digits=2, most=5)

    def cell(value: Any) -> tuple[Any, int]:
        return value, 0 if value is None else scale.step(float(value))

    def at(column: Sequence[Any], i: int) -> Any:
        return column[i] if i < len(column) else None

    body = [
        (name, [cell(at(per_layer[column], i)) for column in columns] + [cell(at(layers, i))])
        for i, name in enumerate(_names(record))
    ]
    foot = [cell(look(found, "domains", name)) for name in columns] + [cell(look(found, "mean"))]
    body.append(("all layers", foot))
    return {"columns": [*columns, "all text"], "rows": body}


def _finding(record: Mapping[str, Any]) -> str:
    """The one sentence that the figures show."""
    found = look(record, "summary", "parts_per_token", default={})
    sentences = []
    by_domain = {
        name: float(look(found, "domains", name)) for name in domains(record) if look(found, "domains", name)
    }
    if len(by_domain) > 1:
        most, least = max(by_domain, key=by_domain.__getitem__), min(by_domain, key=by_domain.__getitem__)
        sentences.append(
            f"Tokens of {most} take the most experts ({by_domain[most]:.2f} on average), "
            f"tokens of {least} the fewest ({by_domain[least]:.2f})."
        )
    layers = [float(value) for value in rows(found, "layers")]
    names = _names(record)
    if len(layers) > 1:
        top, low = layers.index(max(layers)), layers.index(min(layers))
        sentences.append(
            f"By depth, {names[top]} uses the most ({layers[top]:.2f}), "
            f"{names[low]} the fewest ({layers[low]:.2f})."
        )
    share, limit = look(record, "summary", "share_at_max_parts"), _limit(record)
    if share is not None and limit:
        sentences.append(f"In {100 * float(share):.0f} % of cases the limit of {limit[0]} is reached.")
    return " ".join(sentences)


def counts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Charts and tables of the section on parts per token, or the sentence that stands for them."""
    found = look(record, "summary", "parts_per_token", default={})
    same = constant_counts(record)
    if same:
        if len(set(same)) == 1:
            sentence = f"Every token takes exactly {same[0]} expert{'s' * (same[0] > 1)} in each layer"
        else:
            each = [f"{k} in {name}" for k, name in zip(same, _names(record), strict=False)]
            sentence = f"Every token takes the same number of experts: {listing(each)}"
        return {"constant": f"{sentence}: the router chooses a fixed number, so there is no spread to draw."}
    scale = count_scale(largest_count(record))
    return {
        "constant": "",
        "mean": number(look(found, "mean")),
        "std": look(found, "std"),
        "finding": _finding(record),
        "over_time": _over_time(record),
        "bars": _spread_bars(record, scale),
        "legend": list(zip(scale.steps, scale.labels, strict=True)),
        "table": _table(record),
        "any": bool(found),
    }
