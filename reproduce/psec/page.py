"""`docs/results/psec.md`, its pictures and `psec.html`, from the rows alone."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from expertise.errors import counted
from expertise.report.policy import metric_title, render
from expertise.report.records import Curve, Group, Metric, Outcome, PolicyRecord
from expertise.runs.files import write_atomic
from expertise.runs.results import Results, Row
from reproduce.common.page import (
    ERRORS,
    Column,
    Figure,
    dot_chart,
    figures,
    markdown_table,
    metric_of,
    number_of,
    settings_of,
)
from reproduce.psec import shown
from reproduce.psec.paper import paper_value
from reproduce.psec.verdicts import (
    CONTINUAL,
    DYNAMICS,
    LIBRARY,
    MAIN,
    META,
    MULTI,
    OURS,
    SHIFT,
    SMALL,
    limits,
    verdicts,
)

TEN, ALONE = "multi_objective_limit_10", "multi_objective_one_action"
ABLATION, TRAINING = "ablation", "training"
ORDER = (
    "PSEC",
    "PSEC (MLP)",
    "NSEC",
    "ASEC",
    "NSEC (LoRA)",
    "ASEC (LoRA)",
    "fixed weights",
    "reward skill",
    "safety skill",
    "Scratch",
    "Joint",
    "BC",
    "IQL",
    "Base",
)
"""Rows from top to bottom; others follow as they came."""
SAFE_METRICS = ("normalized_reward", "normalized_cost")
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    SHIFT: ("Policy shift", ("return",)),
    MULTI: ("Safe control, cost limit 5", SAFE_METRICS),
    TEN: ("Safe control, cost limit 10", SAFE_METRICS),
    ALONE: ("Safe control, cost limit 5, one action and no critic", SAFE_METRICS),
    DYNAMICS: ("Dynamics shift", ("normalized_reward", "return")),
    META: ("Many tasks (Meta-World)", ("success",)),
    CONTINUAL: ("One task after the other: success on each", ("success",)),
    LIBRARY: ("One library for all scenarios of a robot", ("return",)),
    ABLATION: ("Ablations", ("return", "normalized_reward", "success")),
    TRAINING: ("Training efficiency", ("return",)),
}
"""Table → its title and metrics, in the page's order; of dynamics and ablations the first that there is."""
HOLDS = (
    f"A claim *holds* where every difference that it rests on is more than {ERRORS} standard errors over "
    "seeds on the claimed side. With three to five seeds that is a first look, not a proof.\n"
)
"""Text above the verdicts."""
UNTIL = (
    "An independent reading of these rows found this. It stands here until the scenarios are measured anew.\n"
)
"""Text above the limits."""
INTRO = Path(__file__).with_name("intro.md")
"""Text above the tables."""


def write_psec_page(results: Results, path: Path | None = None) -> list[Path]:
    """Write the page, its pictures and the page for a browser.

    Args:
        results: the rows.
        path: of the Markdown page, the others stand beside it; None: beside the rows.

    Returns:
        What was written, the Markdown page first.
    """
    page = path or results.path.with_suffix(".md")
    written = [page]
    pictures: dict[tuple[str, str], str] = {}
    for table, metric in ((t, m) for t in (SHIFT, MULTI) for m in metrics_of(results, t)):
        settings = _main(settings_of(results, table))
        columns = {s: rows for s in settings if (rows := results.select(table, metric, s))}
        if columns:
            picture = page.with_name(f"{page.stem}_{table}_{metric}.svg")
            write_atomic(picture, dot_chart(order_of(results, table), columns, metric_title(metric)))
            pictures[table, metric] = picture.name
            written.append(picture)
    browser = page.with_suffix(".html")
    write_atomic(browser, render(record(results)))
    write_atomic(page, page_text(results, pictures))
    return [*written, browser]


def page_text(results: Results, pictures: dict[tuple[str, str], str]) -> str:
    """The page as Markdown.

    Args:
        results: the rows.
        pictures: table and metric → file of their picture.
    """
    parts = [INTRO.read_text("utf-8").rstrip() + "\n", "## What holds\n", HOLDS, verdicts(results)]
    parts += ["## What the comparisons do not show\n", UNTIL, limits(results)]
    for table, (title, _) in TABLES.items():
        if not settings_of(results, table):
            continue
        parts.append(f"## {title}\n")
        for metric in metrics_of(results, table):
            if (table, metric) in pictures:
                about = f"{title}, {metric_title(metric)}: a dot per seed, a bar at the mean"
                parts.append(f"![{about}]({pictures[table, metric]})\n")
            parts += _tables(results, table, metric)
    return "\n".join([*parts, "## How it was measured\n", _how(results)])


def metrics_of(results: Results, table: str) -> list[str]:
    """The metrics of a table that are shown."""
    _, wanted = TABLES[table]
    return list(wanted) if table in (MULTI, TEN, ALONE) else [metric_of(results, table, wanted)]


def order_of(results: Results, table: str) -> list[str]:
    """The rows of a table, known ones first."""
    there = list(dict.fromkeys(row.row for row in results.rows if row.table == table))
    return [*(name for name in ORDER if name in there), *(name for name in there if name not in ORDER)]


def record(results: Results) -> PolicyRecord:
    """The record of the page for a browser."""
    groups = []
    for table, (title, _) in TABLES.items():
        metrics = [
            Metric(name=metric, setting=setting, rows=_lines(results, table, setting, metric, rows))
            for setting, settings in _blocks(results, table).items()
            for metric in metrics_of(results, table)
            if (rows := [row for s in settings for row in results.select(table, metric, s)])
        ]
        if metrics:
            groups.append(Group(title=title, metrics=metrics))
    return dataclasses.replace(
        shown.read(results.path),
        title="PSEC",
        environment="every scenario, means over seeds",
        ours=OURS,
        groups=groups,
        curves=_curves(results),
        notes=[
            line.removeprefix("- ")
            for text in (verdicts(results), limits(results))
            for line in text.replace("**", "").splitlines()
        ],
        versions={k: str(v) for k, v in results.environment.items() if k not in ("settings", "cores")},
    )


def _blocks(results: Results, table: str) -> dict[str, list[str]]:
    """Block → its settings; of Meta-World's many tasks the mean is drawn."""
    if table == META:
        return _targets(results, META)
    settings = sorted(settings_of(results, table), key=lambda setting: setting != MAIN)
    return {setting: [setting] for setting in settings}


def _lines(results: Results, table: str, setting: str, metric: str, rows: Column) -> list[Outcome]:
    """Rows of a block: for each its mean over seeds, of each seed's mean over settings."""
    by_seed: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        by_seed.setdefault(row.row, {}).setdefault(row.seed, []).append(row.value)
    found = {
        name: Figure(values={seed: statistics.fmean(values) for seed, values in seeds.items()})
        for name, seeds in by_seed.items()
    }
    return [
        Outcome(
            name=name,
            mean=found[name].mean,
            error=found[name].error or 0.0,
            paper=_paper(table, setting, name, metric),
        )
        for name in order_of(results, table)
        if name in found
    ]


def _main(settings: Sequence[str]) -> list[str]:
    """Settings of a picture: of those with several numbers of trajectories the main one."""
    ten = [setting for setting in settings if "/" in setting and number_of(setting) == 10]
    return ten or list(settings)


def _tables(results: Results, table: str, metric: str) -> list[str]:
    parts, names = [], order_of(results, table)
    for target, settings in _targets(results, table).items():
        columns: dict[str, Column] = {}
        for setting in settings:
            rows = results.select(table, metric, setting)
            if rows:
                columns[setting] = rows
                columns |= _beside(table, setting, metric, names)
        if columns:
            parts.append(f"{metric_title(metric).capitalize()}{f', {target}' if target else ''}:\n")
            digits = 1 if metric == "return" else 2
            # Rows of one task after the other are tasks: none is the best.
            least = None if table == CONTINUAL else metric == "normalized_cost"
            parts.append(markdown_table("row", names, columns, digits=digits, least=least, spread="error"))
    return parts


def _targets(results: Results, table: str) -> dict[str, list[str]]:
    """Settings by what stands before the slash, where they are many."""
    settings = settings_of(results, table)
    if table == TRAINING:
        return {"": sorted(settings, key=_number)}
    if table not in (SHIFT, META):
        return {"": settings}
    found: dict[str, list[str]] = {}
    for setting in settings:
        # Tasks are many, so of these each number of demonstrations has a table.
        few = counted(number_of(setting), "demonstration")
        found.setdefault(setting.rpartition("/")[0] if table == SHIFT else few, []).append(setting)
    heads = sorted(found, key=_number) if table == META else list(found)
    return {head: sorted(found[head], key=_number) for head in heads}


def _number(setting: str) -> tuple[int, str]:
    """In this order."""
    return number_of(setting), setting


def _beside(table: str, setting: str, metric: str, names: Sequence[str]) -> dict[str, Column]:
    """A column of the paper's figures, where it has some."""
    rows = [
        Row(table=table, setting=setting, row=name, metric=metric, unit="", seed=0, value=value)
        for name in names
        if (value := _paper(table, setting, name, metric)) is not None
    ]
    return {f"{setting}, paper": rows} if rows else {}


def _paper(table: str, setting: str, name: str, metric: str) -> float | None:
    """Its limit of cost is not the main table's. How many demonstrations it had is not known: beside most."""
    if table == META and not setting.endswith("/10"):
        return None
    return paper_value(setting, name, metric) if table in (SHIFT, TEN, ABLATION, META) else None


def _curves(results: Results) -> list[Curve]:
    """Return over numbers of trajectories, for each target that has several, and over steps of training."""
    steps = sorted(settings_of(results, TRAINING), key=_number)
    # Points of one curve are of one network: where a cell was measured with two, the small one's.
    wanted = [
        (SHIFT, target, "trajectories", [s for s in own if s + SMALL not in own])
        for target, own in _targets(results, SHIFT).items()
    ]
    charts = []
    for table, title, x_label, settings in [*wanted, (TRAINING, TABLES[TRAINING][0], "steps", steps)]:
        lines: dict[str, list[list[float]]] = {}
        for setting in settings:
            found = figures(results.select(table, "return", setting))
            for name in order_of(results, table):
                # The base learns from none of them: its line would be level, and take a ninth colour.
                if name in found and name != "Base":
                    lines.setdefault(name, []).append([float(number_of(setting)), found[name].mean])
        several = {name: points for name, points in lines.items() if len({x for x, _ in points}) > 1}
        if several:
            charts.append(Curve(title=title, x_label=x_label, log=table == SHIFT, lines=several))
    return charts


def _how(results: Results) -> str:
    found = results.environment
    seeds = sorted({row.seed for row in results.rows})
    settings = found.get("settings", {})
    lines = [f"- Seeds {', '.join(map(str, seeds))}."] if seeds else ["- Nothing was measured yet."]
    lines += [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in settings.items()]
    lines.append(
        f"- {found.get('system')}, Python {found.get('python')}, torch {found.get('torch')}, "
        f"{found.get('cores')} cores, {found.get('date')}, commit {str(found.get('commit'))[:10]}."
    )
    return "\n".join(lines) + "\n"
