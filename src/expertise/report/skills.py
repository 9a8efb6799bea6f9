"""The page of skills and of what is composed of them, `skills.html`: losses, similarity, weights in text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expertise.errors import counted
from expertise.report.colours import signed_scale
from expertise.report.line_charts import Line, line_chart
from expertise.report.page import render_page
from expertise.report.records import ByDomain, SkillEnergy, SkillsRecord, Spread
from expertise.report.text import compact, listing, number, signed

if TYPE_CHECKING:
    from expertise.skills.compare import Comparison

Similarity = Mapping[str, Sequence[Sequence[float]]]
"""Measure → K × K values."""

_READS = {
    "token": ": one choice per token, from its hidden state",
    "pooled": ": from the mean of the hidden states so far",
    "context": ": from a context vector that the caller gives",
    "layer": ": each layer by itself, from its own input",
}
_ENERGY = 0.9
_MAX_CHARTS = 24


def render(record: SkillsRecord) -> str:
    """Draw the page: one HTML file that loads nothing. The same record gives the same text."""
    return render_page(
        "skills.html",
        title=record.title,
        subtitle=_subtitle(record),
        headline=_headline(record),
        lede=_lede(record),
        key_numbers=_key_numbers(record),
        losses=_losses(record),
        similarity=similarity(record.skills, record.similarity),
        proposals=record.proposals,
        by_domain=_by_domain(record),
        passages=_passages(record),
        spectrum=spectrum(record.skills),
        skills=record.skills,
        versions=list(record.versions.items()),
        notes=record.notes,
    )


def _mean(record: SkillsRecord, bits: ByDomain) -> float | None:
    """Mean over the domains that a row has."""
    values = [value for name in record.domains if (value := bits.get(name)) is not None]
    return sum(values) / len(values) if values else None


def _subtitle(record: SkillsRecord) -> str:
    words = [counted(len(record.skills), "skill")] if record.skills else []
    return ", ".join([*words, *([f"on {record.base}"] if record.base else [])])


def _best_skill(record: SkillsRecord) -> tuple[str, float] | None:
    means = {
        skill.name: _mean(record, record.bits_per_byte.skills.get(skill.name, {})) for skill in record.skills
    }
    found = [(name, bits) for name, bits in means.items() if bits is not None]
    return min(found, key=lambda each: each[1]) if found else None


def _headline(record: SkillsRecord) -> str:
    """One sentence: bits per byte of the composed model, the base and the best skill."""
    bits, best = record.bits_per_byte, _best_skill(record)
    composed, base = _mean(record, bits.composed), _mean(record, bits.base)
    if composed is None:
        library = f"A library of {counted(len(record.skills), 'skill')}."
        return library if record.skills else "There are no skills yet."
    others = [value for value in (base, best[1] if best else None) if value is not None]
    # Two decimals would hide which is less where they are close.
    digits = 2 if all(abs(composed - other) >= 0.015 for other in others) else 3
    words = [f"the base needs {number(base, digits)}"] if base is not None else []
    words += [f"the best single skill, {best[0]}, {number(best[1], digits)}"] if best else []
    against = f" where {listing(words)}" if words else ""
    return f"The composed model needs {number(composed, digits)} bits per byte{against}."


def _lede(record: SkillsRecord) -> str:
    """A sentence on the origin of the skills' weights."""
    found = record.composition
    if found.router is not None:
        how = _READS.get(found.reads or "", "")
        return f"A {found.router.replace('_', '-')} router weighs the skills{how}."
    if found.weights:
        each = listing(f"{name} {signed(value)}" for name, value in found.weights.items())
        return f"The skills have constant weights: {each}."
    return "Each skill is a set of low-rank weights beside the frozen ones of the base."


def _key_numbers(record: SkillsRecord) -> list[tuple[str, str, str]]:
    found = []
    bits, best = record.bits_per_byte, _best_skill(record)
    composed, base = _mean(record, bits.composed), _mean(record, bits.base)
    if composed is not None:
        versus = f"base: {number(base)}" if base is not None else ""
        found.append(("bits per byte, composed", number(composed), versus))
    if best is not None:
        found.append(("best single skill", number(best[1]), best[0]))
    sizes = [skill.parameters for skill in record.skills if skill.parameters is not None]
    if sizes:
        found.append(("parameters of all skills", compact(sum(sizes)), ""))
    ranks = sorted({skill.rank for skill in record.skills if skill.rank is not None})
    if ranks:
        found.append(("rank", str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}", ""))
    return found


def _losses(record: SkillsRecord) -> dict[str, Any] | None:
    """Rows by domains: bits per byte, coloured by what they save against the base."""
    bits = record.bits_per_byte
    named = [("base", False, bits.base)]
    named += [(skill.name, True, bits.skills.get(skill.name, {})) for skill in record.skills]
    named += [("all with weight 1 / K", False, bits.uniform), ("composed", False, bits.composed)]
    rows: list[tuple[str, bool, ByDomain]] = [
        (name, is_skill, {**found, "mean": _mean(record, found)}) for name, is_skill, found in named if found
    ]
    columns = [name for name in record.domains if any(found.get(name) is not None for *_, found in rows)]
    if not columns:
        return None
    shown = [*columns, *(["mean"] if len(columns) > 1 else [])]
    base = {**bits.base, "mean": _mean(record, bits.base)}

    def saved(found: ByDomain, column: str) -> float | None:
        before, now = base.get(column), found.get(column)
        return None if before is None or now is None else before - now

    known = [value for *_, found in rows for column in shown if (value := saved(found, column)) is not None]
    scale = signed_scale(known)
    least = {
        column: min(value for *_, found in rows if (value := found.get(column)) is not None)
        for column in shown
    }
    body = []
    for name, is_skill, found in rows:
        cells = [
            (
                found.get(column),
                None if (value := saved(found, column)) is None else scale.step(value),
                found.get(column) == least[column],
            )
            for column in shown
        ]
        body.append((name, is_skill, cells))
    others = [found for *_, found in rows[:-1]] if bits.composed else []
    return {
        "columns": shown,
        "rows": body,
        "legend": scale.legend,
        "finding": _won(bits.composed, others, columns) if others else "",
    }


def _won(composed: ByDomain, others: Sequence[ByDomain], columns: Sequence[str]) -> str:
    won = [
        column
        for column in columns
        if (own := composed.get(column)) is not None
        and all(value is None or own < value for value in (other.get(column) for other in others))
    ]
    if not won:
        return "In no column does the composed model need the fewest bits."
    if len(won) == len(columns):
        return "The composed model needs the fewest bits in every column."
    return (
        f"The composed model needs the fewest bits in {len(won)} of {len(columns)} columns: {listing(won)}."
    )


def _by_domain(record: SkillsRecord) -> dict[str, Any] | None:
    """Mean alpha of each skill in each domain."""
    columns = [name for name in record.domains if record.alpha.get(name)]
    if not columns or not record.skills:
        return None
    table = {
        skill.name: [record.alpha[domain].get(skill.name, Spread()) for domain in columns]
        for skill in record.skills
    }
    scale = signed_scale([each.mean for row in table.values() for each in row if each.mean is not None])
    body = [
        (name, [(each.mean, each.std, None if each.mean is None else scale.step(each.mean)) for each in row])
        for name, row in table.items()
    ]
    return {"columns": columns, "rows": body, "legend": scale.legend}


def _passages(record: SkillsRecord) -> dict[str, Any] | None:
    """Held-out text whose tokens are coloured by the weight of a skill."""
    names = [skill.name for skill in record.skills]
    found = [passage for passage in record.passages if passage.tokens]
    if not names or not found:
        return None
    padding = [0.0] * len(names)
    weights = [[[*token.alpha, *padding][: len(names)] for token in passage.tokens] for passage in found]
    scale = signed_scale([value for passage in weights for token in passage for value in token])
    choices = [(str(skill), name) for skill, name in enumerate(names)]
    return {
        "passages": found,
        "choices": choices,
        "legend": scale.legend,
        "data": {
            "palette": "d",
            "choices": [choice for choice, _ in choices],
            "names": names,
            "steps": [[scale.digits(t[i] for t in tokens) for i in range(len(names))] for tokens in weights],
            "weights": [[[round(v, 3) for v in token] for token in passage] for passage in weights],
        },
    }


def similarity(skills: Sequence[SkillEnergy], measures: Similarity) -> list[dict[str, Any]]:
    """One table of coloured cells per measure."""
    names = [skill.name for skill in skills]
    found = []
    for measure, table in measures.items():
        if len(table) != len(names) or len(table) < 2:
            continue
        others = [(table[i][j], names[i], names[j]) for i in range(len(names)) for j in range(i)]
        scale = signed_scale([value for value, *_ in others])
        most = max(others)
        body = [
            (names[i], [(v, None if i == j else scale.step(v)) for j, v in enumerate(line)])
            for i, line in enumerate(table)
        ]
        found.append(
            {
                "measure": measure,
                "columns": names,
                "rows": body,
                "legend": scale.legend,
                "most": f"{most[2]} and {most[1]} are most alike: {signed(most[0])}.",
            }
        )
    return found


def spectrum(skills: Sequence[SkillEnergy]) -> list[dict[str, Any]]:
    """One small chart per skill: the share of its energy within the first ranks."""
    charts = []
    for i, skill in [(i, skill) for i, skill in enumerate(skills) if skill.energy][:_MAX_CHARTS]:
        energy, ranks = skill.energy, range(1, len(skill.energy) + 1)
        enough = next(
            (rank for rank, value in zip(ranks, energy, strict=True) if value >= _ENERGY), len(energy)
        )
        share = f"{round(100 * _ENERGY)} %"
        svg = line_chart(
            f"energy-{i}",
            f"{skill.name}: the first of {len(energy)} ranks holds {100 * energy[0]:.0f} % of the energy, "
            f"{enough} hold {share}.",
            [Line(x=[float(rank) for rank in ranks], y=energy, show_value=False)],
            references=[("", _ENERGY)],
            x_label="rank",
            limits=(0.0, 1.04),
            size=(310, 185),
            digits=1,
        )
        charts.append(
            {"title": skill.name, "remark": f"rank {enough} of {len(energy)} holds {share}", "svg": svg}
        )
    return charts


def similarity_of(found: Comparison, names: Sequence[str], added_to: str) -> Similarity:
    """The tables of a comparison; a measure that some pair does not have is left out.

    Args:
        found: the comparison.
        names: of the skills, in the order of rows and columns.
        added_to: the outputs that their agreement was measured on.
    """
    titles = (
        "Cosine of what they change",
        f"Agreement of what they add to {added_to}",
        "Overlap of the outputs that they reach",
    )
    values: dict[frozenset[str], tuple[float | None, ...]] = {}
    for pair in found.pairs:
        cosines = [math.cos(math.radians(a)) ** 2 for layer in pair.layers.values() for a in layer.out_angles]
        overlap = statistics.fmean(cosines) if cosines else None
        values[frozenset((pair.first, pair.second))] = (pair.cosine, pair.agreement, overlap)
    return {
        title: [
            [1.0 if one == other else round(values[frozenset((one, other))][i] or 0.0, 4) for other in names]
            for one in names
        ]
        for i, title in enumerate(titles)
        if len(names) > 1 and all(each[i] is not None for each in values.values())
    }
