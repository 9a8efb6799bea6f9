"""The commands `expertise skill list` and `expertise skill show`. They read no weights and import no
torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.cli.options import Json, print_json
from expertise.cli.skill.options import LibraryPath, Name, card_json
from expertise.errors import SkillError, counted

if TYPE_CHECKING:
    from expertise.skills.card import Card


def list_skills(library: LibraryPath = Path("skills"), as_json: Json = False) -> None:
    """List the skills of a library.

    Example: expertise skill list --library skills
    """
    from expertise.runs.progress import say
    from expertise.skills.folders import require_library, skill_names

    rows = [_row(library / name) for name in skill_names(require_library(library))]
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(f"{library} is empty")
        return
    width = max(len(row["name"]) for row in rows) + 2
    print(f"{'name':<{width}}{'rank':>6}{'weights':>9}{'kB':>9}  purpose")
    for row in rows:
        ranks, weights, size = _ranks(row["ranks"]), row["weights"] or "-", row["bytes"] / 1e3
        said = row["problem"] or (
            " ".join(row["purpose"].split()) if row["has_card"] else "no card: not verified"
        )
        print(f"{row['name']:<{width}}{ranks:>6}{weights:>9}{size:>9,.0f}  {said}")


def show(name: Name, library: LibraryPath = Path("skills"), as_json: Json = False) -> None:
    """Show the card of a skill.

    Example: expertise skill show notes
    """
    from expertise.skills.folders import card_of, require_library, skill_folder

    folder = skill_folder(require_library(library), name)
    card = card_of(library, name)
    if as_json:
        known = {"library": str(library), "name": name} if card is None else card_json(library, card)
        print_json({"has_card": card is not None, **known})
        return
    write = f"expertise skill import {folder} --library {library}"
    lines = _lines(card) if card else {"card": f"none; to write one: {write}"}
    lines["files"] = ", ".join(f"{file} {size / 1e3:,.1f} kB" for file, size in _sizes(folder).items())
    print(name)
    width = max(len(title) for title in lines) + 2
    for title, said in lines.items():
        print(f"  {title:<{width}}{said}")


def _row(folder: Path) -> dict[str, Any]:
    """One skill's row in the list, also for a damaged skill."""
    from expertise.skills.card import read_card

    problem, card = None, None
    try:
        card = read_card(folder)
    except SkillError as error:
        problem = error.message
    return {
        "name": folder.name,
        "purpose": card.purpose if card else "",
        "ranks": list(card.ranks) if card else [],
        "weights": len(card.targets) if card else 0,
        "bytes": sum(_sizes(folder).values()),
        "parents": list(card.parents) if card else [],
        "date": card.date if card else "",
        "has_card": card is not None,
        "problem": problem,
    }


def _lines(card: Card) -> dict[str, str]:
    base, parts = card.base, sorted({address.rpartition(".")[2] for address in card.targets})
    known = f"{base.num_params:,} parameters, fingerprint {base.weights[:12]}" if base else ""
    digest = f" (SHA-256 {card.data_digest[:12]})" if card.data_digest else ""
    return {
        "purpose": card.purpose or "not said",
        "base": known or "not known: only shapes can be compared",
        "learnt from": f"{card.data}{digest}" if card.data else "not said",
        "adapts": f"{counted(len(card.targets), 'weight')} at rank {_ranks(card.ranks)}: {', '.join(parts)}",
        "scale": card.scale_convention,
        **({"made from": ", ".join(card.parents)} if card.parents else {}),
        "date": card.date,
        **dict(_flat(card.metrics)),
    }


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures as one level, each under its dotted name."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", f"{value:.4f}" if isinstance(value, float) else str(value)


def _ranks(ranks: list[int] | tuple[int, ...]) -> str:
    return "-" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _sizes(folder: Path) -> dict[str, int]:
    """Size in bytes of each file of a skill."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return {path.name: path.stat().st_size for path in files}
