"""The command `expertise skill compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import Json, print_json, require_model
from expertise.cli.skill.options import BaseOption, Force, LibraryPath, names_of, opened, require_skills

if TYPE_CHECKING:
    from expertise.skills import Comparison

_TABLE = 10
"""Above this number of skills, pairs are listed, because a table would not fit."""
_PAIRS = 20
_SHARES = (0.9, 0.99)


def compare(
    skills: Annotated[
        list[str] | None,
        typer.Argument(help="Skills to compare, as a,b or a b; default: all of the library."),
    ] = None,
    base: BaseOption = None,
    used_by: Annotated[
        list[Path] | None,
        typer.Option("--used-by", help="A composed model: propose skills that none uses; repeat for more."),
    ] = None,
    redundant: Annotated[
        float,
        typer.Option("--redundant", min=0, max=1, help="From this cosine two skills count as one."),
    ] = 0.95,
    energy: Annotated[
        float, typer.Option("--energy", min=0, max=1, help="Propose a smaller rank that keeps this share.")
    ] = 0.99,
    force: Force = False,
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Compare skills: their similarity, the energy that smaller ranks keep, and proposals. Changes nothing.

    Example: expertise skill compare prose,code --used-by mixed
    """
    from expertise.skills.composed_json import read_composed
    from expertise.skills.folders import require_library

    require_library(library)
    names = names_of(",".join(skills), "skills") if skills else None
    require_skills(library, names or [])
    require_model(base)
    from expertise.skills.library import Library

    found = Library(library).compare(
        names,
        base=opened(base),
        redundant=redundant,
        energy=energy,
        compositions={str(path): read_composed(path).skills for path in used_by} if used_by else None,
        force=force,
    )
    if as_json:
        print_json(found.to_json())
        return
    names = [each.name for each in found.energies]
    width = max(len(name) for name in [*names, "cosine"]) + 2
    _cosines(found, names, width)
    shares = "".join(f"{f'{share:.0%} at rank':>13}" for share in _SHARES)
    print(f"\n{'energy':<{width}}{'norm':>10}{'rank':>6}{shares}")
    for each in found.energies:
        kept = each.shares()
        enough = [next((i for i, part in enumerate(kept, 1) if part >= share), 0) for share in _SHARES]
        rank = max(len(values) for values in each.spectrum.values())
        print(f"{each.name:<{width}}{each.norm:>10.4g}{rank:>6}" + "".join(f"{i or '-':>13}" for i in enough))
    print("\nproposals" if found.proposals else "\nno proposals")
    for proposal in found.proposals:
        print(f"  {proposal.reason}")


def _cosines(found: Comparison, names: list[str], width: int) -> None:
    """Print the cosine of every two skills as a table, or only the most similar pairs."""
    values = {(pair.first, pair.second): pair.cosine for pair in found.pairs}
    if len(names) > _TABLE:
        known = sorted((-abs(value), *pair, value) for pair, value in values.items() if value is not None)
        print(f"cosine of the {min(_PAIRS, len(known))} pairs that are most alike")
        for _, first, second, value in known[:_PAIRS]:
            print(f"{first:<{width}}{second:<{width}}{value:>8.3f}")
        return
    columns = [max(8, len(name) + 2) for name in names]
    print(f"{'cosine':<{width}}" + "".join(f"{name:>{w}}" for name, w in zip(names, columns, strict=True)))
    for one in names:
        row = [1.0 if one == other else values.get((one, other), values.get((other, one))) for other in names]
        cells = ["-" if value is None else f"{value:.3f}" for value in row]
        print(f"{one:<{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, columns, strict=True)))
