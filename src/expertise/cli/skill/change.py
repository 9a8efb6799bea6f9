"""The commands `expertise skill rename` and `expertise skill remove`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Json, print_json
from expertise.cli.skill.options import LibraryPath, Name, require_skills
from expertise.errors import RecipeError


def rename(
    old: Name,
    new: Annotated[str, typer.Argument(help="Its new name.")],
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Give a skill another name.

    Composed models keep their own copy under the old one; cards of skills that were made from it go on naming
    the old one.

    Example: expertise skill rename notes diary
    """
    require_skills(library, [old])
    from expertise.skills.library import Library

    Library(library).rename(old, new)
    if as_json:
        print_json({"library": str(library), "old": old, "new": new})
    else:
        print(f"{old} is now {new}")


def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Delete a skill. Composed models that use it keep their own copy.

    Example: expertise skill remove notes --yes
    """
    from expertise.skills.folders import require_library, skill_folder

    folder = skill_folder(require_library(library), name)
    if not yes:
        if not sys.stdin.isatty():
            raise RecipeError(f"{folder} was not removed: nobody is there to be asked", "to remove it: --yes")
        yes = typer.confirm(f"Delete {folder} for good?", err=True)
    if yes:
        from expertise.skills.library import Library

        Library(library).remove(name)
    if as_json:
        print_json({"library": str(library), "name": name, "removed": yes})
    else:
        print(f"removed {folder}" if yes else f"{folder} stays")
