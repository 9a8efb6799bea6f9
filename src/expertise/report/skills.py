"""The page of skills and of what is composed of them: who is good at what, how alike, and who is used where.

A record holds plain values, every one of which may be missing:

- `title`, `base` (in words), `domains`, `notes`, `versions`
- `composition`: `router` and `reads`, or `weights` (skill → alpha) where these are constant
- `skills`: `name`, `purpose`, `rank`, `parameters`, `weights` (how many the skill adapts), `data`, `date`,
  `parents`, `energy` (share of ΔW's squared norm within the first 1, 2, … ranks, mean over the weights)
- `bits_per_byte`: `base`, `uniform` and `composed`, each domain → value; `skills`, each skill → the same
- `similarity`: measure → K × K values
- `proposals`: sentences
- `alpha`: domain → skill → `mean` and `std` over the tokens of held-out text
- `passages`: `domain`, and `tokens` with `text` and `alpha` (one number per skill)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expertise.report.colours import Scale, signed_scale
from expertise.report.figures import Line, line_chart
from expertise.report.page import render_page
from expertise.report.record import domains, look, mean, rows
from expertise.report.text import compact, listing, number, signed

Row = tuple[str, ...]
"""Where a row of the table of losses stands in `bits_per_byte`."""

_ENERGY = 0.9
_MAX_CHARTS = 24
_BASE, _COMPOSED, _UNIFORM = ("base",), ("composed",), ("uniform",)
_ROW_NAMES: dict[Row, str] = {_BASE: "base", _UNIFORM: "all with weight 1 / K", _COMPOSED: "composed"}


def render(record: Mapping[str, Any]) -> str:
    """Draw the page.

    Args:
        record: what is known, as `skills_record` gives it; every entry may be missing.

    Returns:
        One HTML file that loads nothing. The same record gives the same text.
    """
    return render_page(
        "skills.html",
        title=str(look(record, "title", default="skills")),
        subtitle=_subtitle(record),
        headline=_headline(record),
        lede=_lede(record),
        key_numbers=_key_numbers(record),
        losses=_losses(record),
        similarity=_similarity(record),
        proposals=[str(line) for line in rows(record, "proposals")],
        by_domain=_by_domain(record),
        passages=_passages(record),
        spectrum=_spectrum(record),
        facts=_facts(record),
        versions=[(str(k), str(v)) for k, v in look(record, "versions", default={}).items()],
        notes=[str(note) for note in rows(record, "notes")],
    )


def _names(record: Mapping[str, Any]) -> list[str]:
    return [str(look(skill, "name", default=f"skill {i}")) for i, skill in enumerate(rows(record, "skills"))]


def _bits(record: Mapping[str, Any], row: Row) -> float | None:
    """Mean over the domains that the row has."""
    found = look(record, "bits_per_byte", *row, default={})
    values = [float(found[name]) for name in domains(record) if look(found, name) is not None]
    return mean(values) if values else None


def _subtitle(record: Mapping[str, Any]) -> str:
    skills = len(_names(record))
    words = [f"{skills} skill{'s' * (skills != 1)}"] if skills else []
    base = look(record, "base")
    return ", ".join([*words, *([f"on {base}"] if base else [])])


def _best_skill(record: Mapping[str, Any]) -> tuple[str, float] | None:
    found = [(name, bits) for name in _names(record) if (bits := _bits(record, ("skills", name))) is not None]
    return min(found, key=lambda each: each[1]) if found else None


def _headline(record: Mapping[str, Any]) -> str:
    """One sentence: what composing gave."""
    composed, base, best = _bits(record, _COMPOSED), _bits(record, _BASE), _best_skill(record)
    if composed is None:
        names = _names(record)
        return f"A library of {len(names)} skills." if names else "There are no skills yet."
    others = [f"the base needs {number(base)}"] if base is not None else []
    others += [f"the best single skill, {best[0]}, {number(best[1])}"] if best else []
    against = f" where {listing(others)}" if others else ""
    return f"The composed model needs {number(composed)} bits per byte{against}."


def _lede(record: Mapping[str, Any]) -> str:
    """How the weights of the skills come about."""
    reads = {
        "token": "one choice per token, from its hidden state",
        "pooled": "from the mean of the hidden states so far",
        "context": "from a context vector that the caller gives",
        "layer": "each layer by itself, from its own input",
    }
    router, weights = look(record, "composition", "router"), look(record, "composition", "weights")
    if router is not None:
        how = reads.get(str(look(record, "composition", "reads", default="")), "")
        return f"A {str(router).replace('_', '-')} router weighs the skills{': ' * bool(how)}{how}."
    if weights:
        each = listing(f"{name} {signed(value)}" for name, value in weights.items())
        return f"The skills have constant weights: {each}."
    return "Each skill is a set of low-rank weights beside the frozen ones of the base."


def _key_numbers(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    composed, base, best = _bits(record, _COMPOSED), _bits(record, _BASE), _best_skill(record)
    if composed is not None:
        versus = f"base: {number(base)}" if base is not None else ""
        found.append(("bits per byte, composed", number(composed), versus))
    if best is not None:
        found.append(("best single skill", number(best[1]), best[0]))
    skills = rows(record, "skills")
    sizes = [int(size) for skill in skills if (size := look(skill, "parameters")) is not None]
    if sizes:
        found.append(("parameters of all skills", compact(sum(sizes)), ""))
    ranks = sorted({int(rank) for skill in skills if (rank := look(skill, "rank")) is not None})
    if ranks:
        found.append(("rank", str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}", ""))
    return found


def _losses(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows by domains: bits per byte, coloured by what they save against the base."""
    wanted = [_BASE, *(("skills", name) for name in _names(record)), _UNIFORM, _COMPOSED]
    present = [row for row in wanted if look(record, "bits_per_byte", *row)]
    columns = [
        name
        for name in domains(record)
        if any(look(record, "bits_per_byte", *row, name) is not None for row in present)
    ]
    if not present or not columns:
        return None

    def value(row: Row, column: str) -> float | None:
        found = _bits(record, row) if column == "mean" else look(record, "bits_per_byte", *row, column)
        return None if found is None else float(found)

    shown = [*columns, *(["mean"] if len(columns) > 1 else [])]
    saved = {
        (row, column): before - now
        for row in present
        for column in shown
        if (before := value(_BASE, column)) is not None and (now := value(row, column)) is not None
    }
    scale = signed_scale(list(saved.values()))
    least = {
        column: min(found for row in present if (found := value(row, column)) is not None) for column in shown
    }
    body = []
    for row in present:
        cells = []
        for column in shown:
            found = value(row, column)
            step = scale.step(saved[row, column]) if (row, column) in saved else None
            cells.append((found, step, found is not None and found == least[column]))
        body.append((_ROW_NAMES.get(row, row[-1]), row not in _ROW_NAMES, cells))
    return {
        "columns": shown,
        "rows": body,
        "legend": _legend(scale),
        "finding": _won(record, present, columns),
    }


def _won(record: Mapping[str, Any], present: Sequence[Row], columns: Sequence[str]) -> str:
    if _COMPOSED not in present or len(present) < 2:
        return ""
    won = []
    for column in columns:
        others = [look(record, "bits_per_byte", *row, column) for row in present if row != _COMPOSED]
        own = look(record, "bits_per_byte", *_COMPOSED, column)
        if own is not None and all(float(own) < float(other) for other in others if other is not None):
            won.append(column)
    if not won:
        return "In no column does the composed model need the fewest bits."
    if len(won) == len(columns):
        return "The composed model needs the fewest bits in every column."
    return (
        f"The composed model needs the fewest bits in {len(won)} of {len(columns)} columns: {listing(won)}."
    )


def _similarity(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table of coloured cells per measure."""
    names = _names(record)
    found = []
    for measure, matrix in look(record, "similarity", default={}).items():
        table = [[float(value) for value in line] for line in matrix]
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
                "measure": str(measure),
                "columns": names,
                "rows": body,
                "legend": _legend(scale),
                "most": f"{most[2]} and {most[1]} are most alike: {signed(most[0])}.",
            }
        )
    return found


def _by_domain(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean alpha of each skill in each domain."""
    found, names = look(record, "alpha", default={}), _names(record)
    columns = [name for name in domains(record) if look(found, name)]
    if not columns or not names:
        return None
    means = {(skill, domain): look(found, domain, skill, "mean") for skill in names for domain in columns}
    scale = signed_scale([float(value) for value in means.values() if value is not None])
    body = []
    for skill in names:
        cells = [
            (
                means[skill, domain],
                look(found, domain, skill, "std"),
                None if means[skill, domain] is None else scale.step(float(means[skill, domain])),
            )
            for domain in columns
        ]
        body.append((skill, cells))
    return {"columns": columns, "rows": body, "legend": _legend(scale)}


def _passages(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out text whose tokens are coloured by the weight of a skill."""
    names = _names(record)
    found = [passage for passage in rows(record, "passages") if rows(passage, "tokens")]
    weights = [[_padded(token, len(names)) for token in rows(passage, "tokens")] for passage in found]
    if not names or not found:
        return None
    scale = signed_scale([value for passage in weights for token in passage for value in token])
    steps = [
        ["".join(str(scale.step(token[skill])) for token in passage) for skill in range(len(names))]
        for passage in weights
    ]
    labels = [str(look(passage, "domain", default=f"passage {i + 1}")) for i, passage in enumerate(found)]
    return {
        "passages": [
            {
                "domain": label,
                "tokens": [
                    (str(look(token, "text", default="")), int(step))
                    for token, step in zip(rows(passage, "tokens"), digits[0], strict=True)
                ],
            }
            for label, passage, digits in zip(labels, found, steps, strict=True)
        ],
        "choices": [(str(skill), name) for skill, name in enumerate(names)],
        "legend": _legend(scale),
        "data": {
            "palette": "d",
            "choices": [str(skill) for skill in range(len(names))],
            "names": names,
            "steps": steps,
            "weights": [[[round(v, 3) for v in token] for token in passage] for passage in weights],
        },
    }


def _padded(token: Any, length: int) -> list[float]:
    values = [float(value) for value in rows(token, "alpha")][:length]
    return [*values, *[0.0] * (length - len(values))]


def _spectrum(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One small chart per skill: how much of it the first ranks hold."""
    charts: list[dict[str, Any]] = []
    for i, skill in enumerate(rows(record, "skills")):
        energy = [float(value) for value in rows(skill, "energy")]
        if not energy or len(charts) == _MAX_CHARTS:
            continue
        enough = next((rank for rank, value in enumerate(energy, 1) if value >= _ENERGY), len(energy))
        name = _names(record)[i]
        share = f"{round(100 * _ENERGY)} %"
        charts.append(
            {
                "title": name,
                "remark": f"rank {enough} of {len(energy)} holds {share}",
                "svg": line_chart(
                    f"energy-{i}",
                    f"{name}: the first of {len(energy)} ranks holds {100 * energy[0]:.0f} % of the energy, "
                    f"{enough} hold {share}.",
                    [Line(x=[float(rank) for rank in range(1, len(energy) + 1)], y=energy, show_value=False)],
                    references=[("", _ENERGY)],
                    x_label="rank",
                    limits=(0.0, 1.04),
                    size=(310, 185),
                    digits=1,
                ),
            }
        )
    return charts


def _facts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the library knows of each skill."""
    return [
        {
            "name": name,
            "purpose": str(look(skill, "purpose", default="")),
            "rank": look(skill, "rank"),
            "parameters": look(skill, "parameters"),
            "weights": look(skill, "weights"),
            "data": str(look(skill, "data", default="")),
            "date": str(look(skill, "date", default=""))[:10],
            "parents": listing(rows(skill, "parents")),
        }
        for name, skill in zip(_names(record), rows(record, "skills"), strict=True)
    ]


def _legend(scale: Scale) -> list[tuple[int, str]]:
    return list(zip(scale.steps, scale.labels, strict=True))
