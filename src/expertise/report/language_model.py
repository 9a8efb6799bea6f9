"""The page of a language model, `report.html`: headline and learning; the rest is in `experts.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from expertise.report.colours import RATIO_LEGEND
from expertise.report.experts import constant_counts, counts, learnt, load, passages, specialists
from expertise.report.line_charts import Line, line_chart, smooth, thin, token_axis
from expertise.report.page import render_page
from expertise.report.records import EvaluationPoint, LanguageModelRecord, TrainPoint
from expertise.report.text import compact, duration, listing, number, whole

_SIZES = (
    ("parameters_total", "parameters"),
    ("parameters_activated", "activated per token"),
    ("always", "always-on experts"),
    ("routed", "routed experts"),
    ("router", "routers"),
    ("attention", "attention"),
    ("embedding", "embedding and head"),
    ("flops_per_sequence", "FLOPs per sequence"),
)
_STATES = {"finished": "finished", "training": "still training", "stopped": "stopped early"}
_MAX_PANELS = 9
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(record: LanguageModelRecord) -> str:
    """Draw a run's page: one HTML file that loads nothing. The same record gives the same text."""
    mixture = bool(record.layers)
    return render_page(
        "language_model.html",
        title=record.title,
        subtitle=_subtitle(record),
        headline=_headline(record),
        shape=_shape(record),
        mixture=mixture,
        key_numbers=_key_numbers(record),
        learning=_learning(record),
        counts=counts(record) if mixture else None,
        passages=passages(record) if mixture else None,
        load=load(record) if mixture else None,
        specialists=specialists(record) if mixture else None,
        learnt=learnt(record),
        ratio_legend=RATIO_LEGEND,
        samples=record.samples,
        optimizer=optimizer(record),
        recipe=record.recipe,
        sizes=[(words, size) for key, words in _SIZES if (size := record.sizes.get(key)) is not None],
        facts=[*([("seed", record.seed)] if record.seed is not None else []), *record.versions.items()],
        notes=record.notes,
        tokens_counted=record.summary and record.summary.tokens_counted,
    )


def _experts_per_token(record: LanguageModelRecord) -> str:
    """`2.4 of 32 experts on average`, or an empty string for a dense model."""
    sizes = sorted({layer.num_parts for layer in record.layers if layer.num_parts})
    mean = record.parts_per_token.mean
    if not sizes or mean is None:
        return ""
    of = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    same = constant_counts(record)
    if same and len(set(same)) == 1:
        return f"exactly {same[0]} of {of} experts"
    return f"{mean:.1f} of {of} experts on average"


def _headline(record: LanguageModelRecord) -> str:
    """One sentence: bits per byte beside the best compressor's, and the number of experts per token."""
    bits, taken = record.bits_per_byte.get("mean"), _experts_per_token(record)
    if bits is None:
        seen = f"After {compact(record.tokens)} tokens the" if record.tokens else "The"
        return f"{seen} model has not been evaluated yet."
    sentence = f"After {compact(record.tokens)} tokens the model" if record.tokens else "The model"
    best = _best_compressor(record)
    # One decimal would hide which of the two is less where they are close.
    digits = 2 if best is not None and abs(best[1] - bits) < 0.15 else 1
    sentence += f" needs {number(bits, digits)} bits per byte"
    if best is not None:
        sentence += f" where {best[0]} needs {number(best[1], digits)}"
    return f"{sentence}; a token takes {taken}." if taken else f"{sentence}."


def _subtitle(record: LanguageModelRecord) -> str:
    words = [_STATES.get(record.state, record.state)] if record.state else []
    if record.step is not None:
        words.append(f"step {whole(record.step)}" + (f" of {whole(record.steps)}" if record.steps else ""))
    return ", ".join(words)


def _key_numbers(record: LanguageModelRecord) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the row under the headline; those that are not known are left out."""
    found: list[tuple[str, str, str]] = []

    def add(name: str, value: int | float | None, shown: Callable[[Any], str], remark: str = "") -> None:
        if value is not None:
            found.append((name, shown(value), remark))

    best, parts, timing = _best_compressor(record), record.parts_per_token, record.timing
    beside = f"{best[0]}: {number(best[1])}" if best else ""
    add("bits per byte", record.bits_per_byte.get("mean"), number, beside)
    if record.layers:
        spread = "" if parts.std is None else f"± {number(parts.std)}"
        add(
            "experts per token", parts.mean, number, "the same for all" if constant_counts(record) else spread
        )
    total, active = (record.sizes.get(f"parameters_{which}") for which in ("total", "activated"))
    add("parameters", total, compact)
    share = f"{100 * active / total:.0f} % of all" if active and total else ""
    add("activated per token", active, compact, share)
    add("tokens learnt from", record.tokens, compact)
    rate = timing.tokens_per_second
    add("time", timing.seconds, duration, f"{whole(rate)} tokens/s" if rate else "")
    return found


def _shape(record: LanguageModelRecord) -> str:
    """The make-up of the mixture layers, in a sentence."""
    layers = record.layers
    if not layers:
        return "This model is dense: it has no mixture layer, so there are no experts to show."
    kinds = []
    for layer in layers:
        width = f" of width {layer.part_hidden}" if layer.part_hidden else ""
        always = (
            f" beside shared experts of width {layer.always_hidden} that are always on"
            if layer.always_hidden
            else ", none always on"
        )
        kinds.append(f"{'?' if layer.num_parts is None else layer.num_parts} routed experts{width}{always}")
    if len(set(kinds)) == 1:
        many = f"{len(layers)} mixture layers, each with" if len(layers) > 1 else "one mixture layer with"
        return f"The model has {many} {kinds[0]}."
    each = [f"{name} has {kind}" for name, kind in zip(record.layer_names, kinds, strict=True)]
    return f"The mixture layers differ: {listing(each)}."


def _best_compressor(record: LanguageModelRecord) -> tuple[str, float] | None:
    """Name and mean bits per byte of the compressor that does best."""
    means = {name: bits.get("mean") for name, bits in (record.compressors or {}).items()}
    known = [(bits, name) for name, bits in means.items() if bits is not None]
    return (min(known)[1], min(known)[0]) if known else None


def _known(
    points: Sequence[TrainPoint | EvaluationPoint], values: Iterable[float | None]
) -> tuple[list[float], list[float], str]:
    """Positions, values and the unit of the positions, of the points that have a value."""
    having = [(point, value) for point, value in zip(points, values, strict=True) if value is not None]
    x, unit = token_axis([point for point, _ in having])
    return x, [value for _, value in having], unit


def _loss_chart(train: Sequence[TrainPoint]) -> dict[str, Any] | None:
    x, values, x_label = _known(train, [point.loss for point in train])
    if not values:
        return None
    x, values = thin(x, values)
    lines = [Line(x=x, y=values, colour="accent")]
    if len(values) >= 40:
        lines = [
            Line(x=x, y=values, colour="faint", width=1.0, show_value=False),
            Line(x=x, y=smooth(values, max(3, len(values) // 25)), colour="accent"),
        ]
    alt = f"Training loss: from {values[0]:.2f} to {lines[-1].y[-1]:.2f} nats per token."
    return {
        "svg": line_chart("loss", alt, lines, x_label=x_label),
        "caption": "Every step in grey, a running mean in colour."
        if len(lines) == 2
        else "The loss on the text being learnt.",
    }


def _bits_charts(record: LanguageModelRecord) -> list[dict[str, Any]]:
    """One chart for the mean, then one per domain, the latter on a common axis."""
    names = ["mean", *record.domains[:_MAX_PANELS]]
    if len(names) == 2:
        names = names[1:]
    points = record.curves.evaluations
    curves = {name: _known(points, [point.bits_per_byte.get(name) for point in points]) for name in names}
    references = {
        name: [(k, v) for k, bits in (record.compressors or {}).items() if (v := bits.get(name)) is not None]
        for name in names
    }
    everything = [v for _, values, _ in curves.values() for v in values]
    if not everything:
        return []
    everything += [v for some in references.values() for _, v in some]
    low, high = min(everything), max(everything)
    limits = (max(0.0, low - 0.08 * (high - low)), high + 0.04 * (high - low) + 1e-6)
    charts = []
    for i, (name, (x, values, x_label)) in enumerate(curves.items()):
        if not values:
            continue
        versus = " ".join(f"{word} needs {value:.2f}." for word, value in references[name])
        title = "mean of the domains" if name == "mean" else name
        svg = line_chart(
            f"bits-{i}",
            f"Bits per byte, {title}: from {values[0]:.2f} to {values[-1]:.2f}. {versus}".strip(),
            [Line(x=x, y=values, label="model")],
            references=references[name],
            x_label=x_label,
            limits=limits,
            size=(390, 250) if i == 0 else (310, 185),
        )
        charts.append({"title": title, "svg": svg})
    return charts


def _bits_table(record: LanguageModelRecord) -> dict[str, Any] | None:
    """Bits per byte, one row per domain, the model beside the compressors; the least of a row is marked."""
    # A compressor that was not asked, because the text is too short, has no column.
    columns = {"model": record.bits_per_byte} | {
        name: bits
        for name, bits in (record.compressors or {}).items()
        if any(value is not None for value in bits.values())
    }
    body = []
    for name in [*record.domains, "mean"]:
        cells = [bits.get(name) for bits in columns.values()]
        known = [cell for cell in cells if cell is not None]
        if known:
            body.append((name, [(cell, cell == min(known)) for cell in cells]))
    return {"columns": list(columns), "rows": body} if body else None


def _learning(record: LanguageModelRecord) -> dict[str, Any]:
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
        "loss": _loss_chart(record.curves.train),
        "bits": _bits_charts(record),
        "table": table,
        "wins": wins,
        "left_out": max(0, len(record.domains) - _MAX_PANELS),
    }


def optimizer(record: LanguageModelRecord) -> list[dict[str, Any]]:
    """Small charts of balance losses, biases, gradient norm and learning rate."""
    train = record.curves.train
    balance = sorted({key for point in train for key in point.balance})
    wanted: dict[str, list[float | None]] = {
        **{f"balance loss: {key}": [point.balance.get(key) for point in train] for key in balance},
        "largest bias in the choice": [point.largest_bias for point in train],
        "gradient norm": [point.gradient_norm for point in train],
        "learning rate": [point.learning_rate for point in train],
    }
    charts = []
    for i, (title, logged) in enumerate(wanted.items()):
        x, values, x_label = _known(train, logged)
        if not values:
            continue
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
