"""The command `expertise skill merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Json, print_json, require_model
from expertise.cli.skill.options import (
    BaseOption,
    Force,
    LibraryPath,
    Purpose,
    card_json,
    names_of,
    numbers_of,
    opened,
    require_skills,
)


def merge(
    skills: Annotated[list[str], typer.Argument(help="Skills to merge, as a,b or a b.")],
    name: Annotated[str, typer.Option("--name", help="Name of the sum.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="One weight per skill, as 0.7,-0.3; default 1 each.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Cut the sum to this rank; default: ranks add up."),
    ] = None,
    base: BaseOption = None,
    purpose: Purpose = None,
    force: Force = False,
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Add the weighted sum of several skills as a new one, and print the loss of a smaller rank.

    Example: expertise skill merge prose,code --weights 0.7,0.3 --rank 8 --name both
    """
    names = names_of(",".join(skills), "skills")
    constant = None if weights is None else numbers_of(weights, "--weights")
    require_skills(library, names)
    require_model(base)
    from expertise.skills.library import Library

    place = Library(library)
    merged = place.merge(
        names,
        name=name,
        weights=constant,
        rank=rank,
        base=opened(base),
        purpose=purpose,
        force=force,
    )
    card = place.card(name)
    assert card is not None
    if as_json:
        print_json({**card_json(library, card), "error": merged.error, "errors": dict(merged.errors)})
        return
    print(f"skill {name} is in {library}, rank {max(card.ranks)}")
    error = "none, it is exact" if rank is None else f"{merged.error:.2%} of the norm of the exact sum"
    print(f"error: {error}")
