"""Tables, passages and charts of the page of skills."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expertise.report.colours import Scale, signed_scale
from expertise.report.figures import Line, line_chart
from expertise.report.record import domains, look, rows
from expertise.report.text import signed

_ENERGY = 0.9
_MAX_CHARTS = 24


def skill_names(record: Mapping[str, Any]) -> list[str]:
    """The skills, in the order of alpha."""
    return [str(look(skill, "name", default=f"skill {i}")) for i, skill in enumerate(rows(record, "skills"))]


def similarity(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table of coloured cells per measure."""
    names = skill_names(record)
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
                "legend": legend(scale),
                "most": f"{most[2]} and {most[1]} are most alike: {signed(most[0])}.",
            }
        )
    return found


def by_domain(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Mean alpha of each skill in each domain."""
    found, names = look(record, "alpha", default={}), skill_names(record)
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
    return {"columns": columns, "rows": body, "legend": legend(scale)}


def passages(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out text whose tokens are coloured by the weight of a skill."""
    names = skill_names(record)
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
        "legend": legend(scale),
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


def spectrum(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One small chart per skill: how much of it the first ranks hold."""
    charts: list[dict[str, Any]] = []
    for i, skill in enumerate(rows(record, "skills")):
        energy = [float(value) for value in rows(skill, "energy")]
        if not energy or len(charts) == _MAX_CHARTS:
            continue
        enough = next((rank for rank, value in enumerate(energy, 1) if value >= _ENERGY), len(energy))
        name = skill_names(record)[i]
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


def legend(scale: Scale) -> list[tuple[int, str]]:
    """Step of the palette and label of each class."""
    return list(zip(scale.steps, scale.labels, strict=True))
