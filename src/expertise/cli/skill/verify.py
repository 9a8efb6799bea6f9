"""The command `expertise skill verify`."""

from __future__ import annotations

from pathlib import Path

import typer

from expertise.cli.options import Json, print_json
from expertise.cli.skill.options import LibraryPath
from expertise.errors import counted


def verify(library: LibraryPath = Path("skills"), as_json: Json = False) -> None:
    """Check every byte of every skill: damaged files, unusable skills, empty fields of cards.

    Exit code 2: a skill cannot be used.

    Example: expertise skill verify --library skills
    """
    from expertise.skills.folders import require_library

    if not library.exists():
        require_library(library)
    from expertise.skills.library import Library

    found = Library(library).verify()
    if as_json:
        print_json(found.to_json())
    else:
        for check in found.skills:
            print("\n".join(check.lines()))
        for other in found.others:
            print(f"{other}: no skill")
        damaged = sum(bool(check.problems) for check in found.skills)
        print(f"{counted(len(found.skills), 'skill')}, {damaged} of them cannot be used")
    if not found.ok:
        raise typer.Exit(2)
