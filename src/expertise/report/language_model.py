"""`report.html` of a language model: how it learnt, how many experts a token took, what each learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expertise.report.counts import constant_counts, counts
from expertise.report.experts import learnt, load, ratio_legend, specialists
from expertise.report.learning import best_compressor, learning, optimizer
from expertise.report.page import render_page
from expertise.report.passages import passages
from expertise.report.record import domains, layer_names, look, rows
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


def _experts_per_token(record: Mapping[str, Any]) -> str:
    """`2.4 of 32 experts on average`, or an empty string for a dense model."""
    sizes = sorted({int(n) for layer in rows(record, "layers") if (n := look(layer, "num_parts"))})
    mean = look(record, "summary", "parts_per_token", "mean")
    if not sizes or mean is None:
        return ""
    of = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    same = constant_counts(record)
    if same and len(set(same)) == 1:
        return f"exactly {same[0]} of {of} experts"
    return f"{float(mean):.1f} of {of} experts on average"


def _headline(record: Mapping[str, Any]) -> str:
    """One sentence: what the model can do, against what, and with how many experts."""
    tokens, bits = look(record, "tokens"), look(record, "summary", "bits_per_byte", "mean")
    taken = _experts_per_token(record)
    if bits is None:
        seen = f"After {compact(tokens)} tokens the" if tokens else "The"
        return f"{seen} model has not been evaluated yet."
    sentence = f"After {compact(tokens)} tokens the model" if tokens else "The model"
    sentence += f" needs {number(bits, 1)} bits per byte"
    best = best_compressor(record)
    # One decimal would hide which of the two is less where they are close.
    if best is not None:
        digits = 1 if abs(best[1] - float(bits)) >= 0.15 else 2
        sentence = sentence.replace(number(bits, 1) + " bits", number(bits, digits) + " bits")
        sentence += f" where {best[0]} needs {number(best[1], digits)}"
    return f"{sentence}; a token takes {taken}." if taken else f"{sentence}."


def _subtitle(record: Mapping[str, Any]) -> str:
    state = look(record, "state", default="")
    step, steps = look(record, "step"), look(record, "steps")
    words = [_STATES.get(state, str(state))] if state else []
    if step is not None:
        words.append(f"step {whole(step)}" + (f" of {whole(steps)}" if steps else ""))
    return ", ".join(words)


def _key_numbers(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, remark) of the row under the headline; those that are not known are left out."""
    summary, sizes = look(record, "summary", default={}), look(record, "sizes", default={})
    found: list[tuple[str, str, str]] = []

    def add(what: str, value: Any, shown: str, remark: str = "") -> None:
        if value is not None:
            found.append((what, shown, remark))

    bits, best = look(summary, "bits_per_byte", "mean"), best_compressor(record)
    add("bits per byte", bits, number(bits), f"{best[0]}: {number(best[1])}" if best else "")
    parts, std = look(summary, "parts_per_token", "mean"), look(summary, "parts_per_token", "std")
    if rows(record, "layers"):
        remark = (
            "the same for all" if constant_counts(record) else f"± {number(std)}" if std is not None else ""
        )
        add("experts per token", parts, number(parts), remark)
    total, active = look(sizes, "parameters_total"), look(sizes, "parameters_activated")
    add("parameters", total, compact(total))
    share = f"{100 * float(active) / float(total):.0f} % of all" if active and total else ""
    add("activated per token", active, compact(active), share)
    tokens, seconds = look(record, "tokens"), look(record, "timing", "seconds")
    add("tokens learnt from", tokens, compact(tokens))
    rate = look(record, "timing", "tokens_per_second")
    add("time", seconds, duration(seconds), f"{whole(rate)} tokens/s" if rate else "")
    return found


def _shape(record: Mapping[str, Any]) -> str:
    """What the mixture layers are made of, in a sentence."""
    layers = rows(record, "layers")
    if not layers:
        return "This model is dense: it has no mixture layer, so there are no experts to show."
    kinds = []
    for layer in layers:
        always, hidden = look(layer, "always_hidden", default=0), look(layer, "part_hidden")
        kind = f"{look(layer, 'num_parts', default='?')} routed experts" + (
            f" of width {hidden}" if hidden else ""
        )
        kind += (
            f" beside shared experts of width {always} that are always on" if always else ", none always on"
        )
        kinds.append(kind)
    if len(set(kinds)) == 1:
        number_of = (
            f"{len(layers)} mixture layers, each with" if len(layers) > 1 else "one mixture layer with"
        )
        return f"The model has {number_of} {kinds[0]}."
    each = [f"{name} has {kind}" for name, kind in zip(layer_names(record), kinds, strict=True)]
    return f"The mixture layers differ: {listing(each)}."


def render(record: Mapping[str, Any]) -> str:
    """Draw a run's page.

    Args:
        record: what is known of the run, as it is written to `report.json`; every entry may be missing.

    Returns:
        One HTML file that loads nothing. The same record gives the same text.
    """
    mixture = bool(rows(record, "layers"))
    learnt_tables = learnt(record)
    return render_page(
        "language_model.html",
        title=str(look(record, "title", default="language model")),
        subtitle=_subtitle(record),
        headline=_headline(record),
        shape=_shape(record),
        mixture=mixture,
        key_numbers=_key_numbers(record),
        learning=learning(record),
        counts=counts(record) if mixture else None,
        passages=passages(record) if mixture else None,
        load=load(record) if mixture else None,
        specialists=specialists(record) if mixture else None,
        learnt=learnt_tables,
        ratio_legend=ratio_legend(),
        samples=rows(record, "samples"),
        optimizer=optimizer(record),
        recipe=look(record, "recipe"),
        sizes=[
            (words, look(record, "sizes", key))
            for key, words in _SIZES
            if look(record, "sizes", key) is not None
        ],
        facts=_facts(record),
        notes=[str(note) for note in rows(record, "notes")],
        tokens_counted=look(record, "summary", "tokens_counted"),
        domains=domains(record),
    )


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [(str(name), str(version)) for name, version in look(record, "versions", default={}).items()]
    seed = look(record, "seed")
    return [*([("seed", str(seed))] if seed is not None else []), *facts]
