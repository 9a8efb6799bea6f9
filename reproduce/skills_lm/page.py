"""`docs/results/skills_lm.md` and its picture, from the rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expertise.runs.files import write_atomic
from expertise.runs.results import Results
from reproduce.common.page import Column, dot_chart, figures, markdown_table, settings_of, wins
from reproduce.skills_lm import llama, ours, search
from reproduce.skills_lm.measure import BITS, PARTS, SECONDS, TRAINED, VALIDATION
from reproduce.skills_lm.plan import COMMON, SKILLS, TARGETS, target_name

METHODS = tuple(row for row in ours.ORDER if row not in SKILLS)
"""Rows of the picture: what can be done, single skills by their best."""
LEARNT = (ours.FIXED, ours.SEQUENCE, ours.TOKEN, ours.TOP_P)
"""Ways to compose that see some of the target's text."""
COMPOSED = (ours.SEQUENCE, ours.TOKEN)
"""Context routers of the second table."""

INTRO = Path(__file__).with_name("intro.md")
"""Text above the tables."""


def write_page(results: Results) -> list[Path]:
    """Write the page and its picture beside the rows; their paths."""
    page, picture = (results.path.with_suffix(suffix) for suffix in (".md", ".svg"))
    columns = main_columns(results)
    write_atomic(picture, dot_chart(METHODS, columns, "bits per byte"))
    write_atomic(page, page_text(results, picture.name))
    return [page, picture]


def main_columns(results: Results) -> dict[str, Column]:
    """Target → rows of the main table."""
    return {target_name(pair): results.select(ours.MAIN, BITS, target_name(pair)) for pair in TARGETS}


def page_text(results: Results, picture: str) -> str:
    """The page as Markdown."""
    columns = main_columns(results)
    pairs = {setting: results.select(ours.PAIR, BITS, setting) for setting in ("ours", llama.SETTING)}
    first = TARGETS[0]
    parts = [
        INTRO.read_text("utf-8"),
        "## Mixed targets\n",
        f"![Every way to serve the targets, a dot per seed]({picture})\n",
        markdown_table("row", ours.ORDER, columns),
        _sizes(results),
        "### Who is below whom\n",
        "In how many seeds a row needs fewer bits than all of those that a column names, target by target "
        f"({'; '.join(columns)}).\n",
        _wins(columns),
        *_little_text(results),
        "## Each skill on its own domain, and on the others\n",
        f"`{COMMON}` is what the base mostly read.\n",
        markdown_table(
            "row",
            (ours.BASE, *SKILLS, ours.JOINT),
            {d: results.select(ours.DOMAINS, BITS, d) for d in (COMMON, *SKILLS)},
        ),
        f"## Two skills, on our mixture and on a tiny Llama: {target_name(first)}\n",
        "The Llama is made of transformers' classes and trained from nothing on the same text with the same "
        "tokenizer; its skills adapt every linear layer but the head.\n",
        markdown_table("row", (ours.BASE, *first, *COMPOSED), pairs),
        "\n".join(_verdicts(pairs, (ours.BASE, *first))) + "\n",
        *_rates(results),
        "## How it was measured\n",
        _how(results),
    ]
    return "\n".join(part for part in parts if part)


def _little_text(results: Results) -> list[str]:
    """The section on little text, where it was measured."""
    settings = settings_of(results, ours.FEW)
    if not settings:
        return []
    return [
        f"## With little text of the target: {target_name(TARGETS[0])}\n",
        "A router, or a new skill, learnt from the first kilobytes of the target's training text, again and "
        "again for so many steps.\n",
        markdown_table(
            "row",
            (ours.BASE, ours.SEQUENCE, ours.TOKEN, ours.NEW),
            {setting: results.select(ours.FEW, BITS, setting) for setting in settings},
        ),
    ]


def _rates(results: Results) -> list[str]:
    """The section on the search, where it was made."""
    settings = settings_of(results, search.SEARCH)
    if not settings:
        return []
    return [
        "## How the learning rates were chosen\n",
        "Bits per byte on text to select on, with the first seed; routers and the new skill on "
        f"{target_name(TARGETS[0])}.\n",
        markdown_table(
            "row",
            search.ORDER,
            {setting: results.select(search.SEARCH, VALIDATION, setting) for setting in settings},
        ),
    ]


def _wins(columns: Mapping[str, Column]) -> str:
    singles = (ours.BASE, *SKILLS)
    against: dict[str, Sequence[str]] = {
        "base and every skill": singles,
        "uniform average": (ours.UNIFORM,),
        "fixed weights": (ours.FIXED,),
        "joint fine-tuning": (ours.JOINT,),
        "new skill": (ours.NEW,),
    }
    lines = [f"| row | {' | '.join(against)} |", f"|---|{'---|' * len(against)}"]
    for row in (ours.UNIFORM, *LEARNT):
        cells = []
        for others in against.values():
            if row in others:
                cells.append("")
                continue
            found = [wins(rows, row, others) for rows in columns.values()]
            cells.append("; ".join(f"{won} of {seeds}" for won, seeds in found))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _verdicts(pairs: Mapping[str, Column], others: Sequence[str]) -> list[str]:
    """For each base whether a context router is below both skills and the base, seed by seed."""
    lines = []
    for setting, rows in pairs.items():
        for row in COMPOSED:
            won, seeds = wins(rows, row, others)
            if not seeds:
                lines.append(f"- {setting}, {row}: not measured.")
                continue
            verdict = "holds" if won == seeds else "**does not hold**"
            lines.append(
                f"- {setting}, {row}: below the base and both skills in {won} of {seeds} seeds: {verdict}."
            )
    return lines


def _sizes(results: Results) -> str:
    """Learned numbers of each row that learns something from the target, and what top-p takes."""
    target = target_name(TARGETS[0])
    sizes = figures(results.select(ours.MAIN, TRAINED, target))
    words = [f"{name} {round(size.mean):,}" for name, size in sizes.items()]
    lines = [f"Numbers that are learnt: {', '.join(words)}."] if words else []
    taken = {
        target_name(pair): figures(results.select(ours.MAIN, PARTS, target_name(pair))) for pair in TARGETS
    }
    shown = [f"{found[ours.TOP_P].text(2)} on {name}" for name, found in taken.items() if ours.TOP_P in found]
    if shown:
        lines.append(f"Top-p takes {' and '.join(shown)} of {len(SKILLS)} skills per token and layer.")
    return " ".join(lines) + "\n" if lines else ""


def _how(results: Results) -> str:
    found = results.environment
    settings = found.get("settings", {})
    pools = settings.get("pools", {})
    seconds = sum(row.value for row in results.rows if row.metric == SECONDS)
    seeds = sorted({row.seed for row in results.rows})
    lines = [
        f"- Seeds {', '.join(map(str, seeds))}: each has its own base, skills, routers and order of text.",
        f"- Bases: width {settings.get('dim')}, {settings.get('num_layers')} layers, context "
        f"{settings.get('context')}, {settings.get('base_steps')} steps of {settings.get('batch_size')} "
        f"windows; ours has {settings.get('num_parts')} experts of width {settings.get('hidden')} per layer, "
        "2 of them per token, beside one that is always on.",
        f"- Skills: rank {settings.get('rank')}, {settings.get('skill_steps')} steps. Routers: "
        f"{settings.get('router_steps')} steps.",
        "- Text: installed packages, dealt out by document to pools with no paragraph in common: "
        f"{pools.get('base_common', 0) / 1e6:g} MB of {COMMON} and {pools.get('base_other', 0) / 1e6:g} MB "
        f"of every other domain for the base, {pools.get('skill', 0) / 1e6:g} MB for each skill, "
        "divided 90 : 5 : 5 (tables show the last part). A target is made of passages of about "
        f"{pools.get('passage')} bytes, at most {pools.get('most')} of a document: {pools.get('learn')} "
        f"documents of each domain to learn from, {pools.get('select')} to select weights and rates on, "
        f"{pools.get('held')} to measure on.",
        f"- {seconds / 60:.0f} minutes of one core in all; {found.get('system')}, Python "
        f"{found.get('python')}, torch {found.get('torch')}, transformers {found.get('transformers')}, "
        f"{found.get('date')}, commit {str(found.get('commit'))[:10]}.",
    ]
    return "\n".join(lines) + "\n"
