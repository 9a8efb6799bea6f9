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

from expertise.errors import counted
from expertise.report.colours import signed_scale
from expertise.report.page import render_page
from expertise.report.record import domains, look, mean, rows
from expertise.report.skills_parts import by_domain, legend, passages, similarity, skill_names, spectrum
from expertise.report.text import compact, listing, number, signed

Row = tuple[str, ...]
"""Where a row of the table of losses stands in `bits_per_byte`."""

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
        similarity=similarity(record),
        proposals=[str(line) for line in rows(record, "proposals")],
        by_domain=by_domain(record),
        passages=passages(record),
        spectrum=spectrum(record),
        facts=_facts(record),
        versions=[(str(k), str(v)) for k, v in look(record, "versions", default={}).items()],
        notes=[str(note) for note in rows(record, "notes")],
    )


def _bits(record: Mapping[str, Any], row: Row) -> float | None:
    """Mean over the domains that the row has."""
    found = look(record, "bits_per_byte", *row, default={})
    values = [float(found[name]) for name in domains(record) if look(found, name) is not None]
    return mean(values) if values else None


def _subtitle(record: Mapping[str, Any]) -> str:
    skills = len(skill_names(record))
    words = [f"{skills} skill{'s' * (skills != 1)}"] if skills else []
    base = look(record, "base")
    return ", ".join([*words, *([f"on {base}"] if base else [])])


def _best_skill(record: Mapping[str, Any]) -> tuple[str, float] | None:
    found = [
        (name, bits) for name in skill_names(record) if (bits := _bits(record, ("skills", name))) is not None
    ]
    return min(found, key=lambda each: each[1]) if found else None


def _headline(record: Mapping[str, Any]) -> str:
    """One sentence: what composing gave."""
    composed, base, best = _bits(record, _COMPOSED), _bits(record, _BASE), _best_skill(record)
    if composed is None:
        names = skill_names(record)
        return f"A library of {counted(len(names), 'skill')}." if names else "There are no skills yet."
    others = [value for value in (base, best[1] if best else None) if value is not None]
    # Two decimals would hide which is less where they are close.
    digits = 2 if all(abs(composed - other) >= 0.015 for other in others) else 3
    words = [f"the base needs {number(base, digits)}"] if base is not None else []
    words += [f"the best single skill, {best[0]}, {number(best[1], digits)}"] if best else []
    against = f" where {listing(words)}" if words else ""
    return f"The composed model needs {number(composed, digits)} bits per byte{against}."


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
    wanted = [_BASE, *(("skills", name) for name in skill_names(record)), _UNIFORM, _COMPOSED]
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
        "legend": legend(scale),
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
        for name, skill in zip(skill_names(record), rows(record, "skills"), strict=True)
    ]
