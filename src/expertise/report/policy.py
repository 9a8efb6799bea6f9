"""The page of policies: what each earns and costs, and when a composed one leans on which skill.

A record holds plain values, every one of which may be missing:

- `title`, `environment`, `notes`, `versions`
- `groups`: `title`, `note`, and `metrics` with `name`, `setting` (where a group has several) and `rows`, of
  which each has `name`, `mean`, `error` (standard error) and `paper` (what the paper has)
- `curves`: `title`, `x_label`, `log`, and `lines`, row → [x, mean] pairs
- `trace`, an episode step by step: `method`, `where` (if not in `environment`), `names`, `alpha` (one number
  per name), `costs`, `risk`, `positions`, `frames` (pictures as data URLs) and `frame_steps`
- `skills`, `similarity`, `proposals`: as on the page of skills
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expertise.report.page import render_page
from expertise.report.policy_parts import bars, curves, episode, leaning, maps, metric_title
from expertise.report.record import look, rows
from expertise.report.skills_parts import similarity, spectrum
from expertise.report.text import signed

_OURS = "PSEC"
_COST = "normalized_cost"


def render(record: Mapping[str, Any]) -> str:
    """Draw the page.

    Args:
        record: what is known, as `policy_record` gives it; every entry may be missing.

    Returns:
        One HTML file that loads nothing. The same record gives the same text.
    """
    return render_page(
        "policy.html",
        title=str(look(record, "title", default="policies")),
        subtitle=str(look(record, "environment", default="")),
        headline=_headline(record),
        lede=_lede(look(record, "trace")),
        groups=bars(record),
        curves=curves(record),
        episode=episode(record),
        maps=maps(record),
        similarity=similarity(record),
        proposals=[str(line) for line in rows(record, "proposals")],
        spectrum=spectrum(record),
        versions=[(str(k), str(v)) for k, v in look(record, "versions", default={}).items()],
        notes=[str(note) for note in rows(record, "notes")],
    )


def _lede(trace: Any) -> str:
    """When it leans on safety; in which episode, where that does not go without saying."""
    said, where = leaning(trace), str(look(trace, "where", default=""))
    return f"{where}: {said[0].lower()}{said[1:]}" if said and where else said


def _headline(record: Mapping[str, Any]) -> str:
    """What the composed policy came to in the first group, and the best of the others."""
    for group in rows(record, "groups"):
        every = rows(group, "metrics")
        setting = next((look(m, "setting") for m in every), None)
        found = {str(look(m, "name")): _means(m) for m in every if look(m, "setting") == setting}
        gains = {name: means for name, means in found.items() if name != _COST and _OURS in means}
        if not gains:
            continue
        metric, means = next(iter(gains.items()))
        digits = 0 if abs(means[_OURS]) >= 50 else 2
        words = f"{_OURS} reaches {metric_title(metric)} {signed(means[_OURS], digits)}"
        costs = found.get(_COST, {})
        if _OURS in costs:
            words += f" at {signed(costs[_OURS])} of the cost limit"
            rivals = {n: v for n, v in means.items() if n != _OURS and costs.get(n, 1.0) < 1}
            which = "the best other safe policy"
        else:
            rivals, which = {n: v for n, v in means.items() if n != _OURS}, "the best of the others"
        if rivals:
            best = max(rivals, key=lambda name: rivals[name])
            words += f"; {which}, {best}, {signed(rivals[best], digits)}"
        return f"{setting}: {words}." if setting else f"{words}."
    names = sum(len(rows(m, "rows")) for g in rows(record, "groups") for m in rows(g, "metrics")[:1])
    if names == 1:
        return "What one policy does, and what it earns."
    return f"{names} policies, side by side." if names else "No policy has acted yet."


def _means(metric: Any) -> dict[str, float]:
    return {str(look(row, "name")): float(look(row, "mean", default=0.0)) for row in rows(metric, "rows")}
