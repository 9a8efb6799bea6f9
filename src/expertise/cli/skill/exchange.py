"""The commands `expertise skill import`, `export` and `add`: between a library and other folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from expertise.cli.options import IS_PATH, Json, print_json, require_model
from expertise.cli.skill.options import (
    BaseOption,
    Force,
    LibraryPath,
    Name,
    Purpose,
    card_json,
    opened,
    require_skills,
)
from expertise.errors import SkillError, counted
from expertise.runs.files import nearest_beside

NewName = Annotated[
    str | None, typer.Option("--name", help="The new skill's name; default: the folder's name.")
]


def import_adapter(
    path: Annotated[
        Path, typer.Argument(help="A LoRA adapter that PEFT saved, or a skill that lacks a card or a base.")
    ],
    name: NewName = None,
    base: BaseOption = None,
    purpose: Purpose = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="The training data, in words, or a file, whose SHA-256 is noted too."),
        IS_PATH,
    ] = None,
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Import a LoRA adapter of PEFT's into a library; its files are copied, older layouts converted.

    With --base its card says which model it belongs to, and it is held against that model's layers. A folder
    of the library itself gets the card that it lacks, or a card that says more.

    Example: expertise skill import adapters/notes --name notes --base runs/demo
    """
    _require_folder(path, "adapter")
    require_model(base)
    from expertise.skills.library import Library

    known: dict[str, Any] = {"purpose": purpose, "data": data, "data_digest": _digest(data)}
    card = Library(library).import_peft(path, name=name, base=opened(base), **known)
    if as_json:
        print_json(card_json(library, card))
        return
    knows = "" if card.base else "; its base is not known: only shapes can be compared"
    print(f"skill {card.name} is in {library}, {counted(len(card.targets), 'weight')}{knows}")


def export(
    name: Name,
    out: Annotated[Path, typer.Option("--out", help="The adapter's folder; it must be new.")],
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Write a skill as a LoRA adapter that PEFT loads.

    Example: expertise skill export notes --out adapters/notes
    """
    require_skills(library, [name])
    from expertise.skills.library import Library

    folder = Library(library).export_peft(name, out)
    if as_json:
        print_json({"library": str(library), "name": name, "out": str(folder)})
    else:
        print(f"{folder}: load it with PeftModel.from_pretrained(model, {str(folder)!r})")


def add(
    folder: Annotated[Path, typer.Argument(help="A skill's folder, such as other-library/notes.")],
    name: NewName = None,
    base: BaseOption = None,
    force: Force = False,
    library: LibraryPath = Path("skills"),
    as_json: Json = False,
) -> None:
    """Copy a skill of another library with its card, after a check of every file against the card.

    Example: expertise skill add ../theirs/skills/notes
    """
    _require_folder(folder, "skill")
    require_model(base)
    from expertise.skills.library import Library

    card = Library(library).add_folder(folder, name=name, base=opened(base), force=force)
    if as_json:
        print_json(card_json(library, card))
    else:
        print(f"skill {card.name} is in {library}, {counted(len(card.targets), 'weight')}")


def _require_folder(path: Path, what: str) -> None:
    """Refuse a folder that does not exist, before torch is imported."""
    if not os.path.isdir(path):
        name = (
            "name a folder that PEFT saved" if what == "adapter" else "name a skill's folder, with its card"
        )
        raise SkillError(f"no {what} at {path}", *nearest_beside(path), name)


def _digest(data: str | None) -> str | None:
    from expertise.runs.files import sha256_of

    return sha256_of(Path(data)) if data is not None and Path(data).is_file() else None
