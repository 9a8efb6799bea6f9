"""Import and export: adapters of PEFT, and skills of other libraries."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from expertise.errors import SkillError
from expertise.runs.files import write_atomic
from expertise.skills.card import (
    CARD,
    Card,
    card_text,
    changed,
    entries,
    now,
    read_card,
    read_files,
)
from expertise.skills.fingerprints import fingerprint
from expertise.skills.folders import (
    exporting,
    library_in,
    put,
    require_name,
    skill_folder,
    skill_names,
    writing,
)
from expertise.skills.peft_config import CONFIG
from expertise.skills.peft_export import for_peft
from expertise.skills.reading import read_adapter, require_same_base


def import_adapter(
    library: Path, folder: Path, name: str | None, base: nn.Module | None, known: Mapping[str, Any]
) -> Card:
    """Import an adapter of PEFT's; see `Library.import_peft`. `known`: fields of the card that were given."""
    inside = (library / folder.name).resolve() == folder.resolve() and name in (None, folder.name)
    if not inside and not (folder / CONFIG).is_file():
        raise SkillError(
            f"no adapter at {folder}: it has no {CONFIG}", *_instead(folder), "name a folder that PEFT saved"
        )
    before = read_card(folder) if inside else None
    files = read_files(folder, before)
    name = require_name(folder.resolve().name if name is None else name)
    adapter = read_adapter(folder, files, base)
    mended = for_peft(files, adapter, base)
    card = before or Card(name=name, scale_convention=adapter.convention)
    if known["data"] is not None:
        card = dataclasses.replace(card, data_digest=None)  # that of other data
    card = changed(
        card,
        name=name,
        base=None if base is None else fingerprint(base),
        targets={address: made.rank for address, made in adapter.factors.items()},
        **known,
    )
    if not inside:
        return put(library, card, mended)
    with writing(library):
        card = dataclasses.replace(card, date=now(), files=entries(files))
        write_atomic(skill_folder(library, name) / CARD, card_text(card))
    return card


def add_folder(library: Path, folder: Path, name: str | None, base: nn.Module | None, *, force: bool) -> Card:
    """Copy a skill's folder into a library; see `Library.add_folder`."""
    card = read_card(folder) if folder.is_dir() else None
    if card is None:
        bare = ("it is an adapter without a card: import it",) if (folder / CONFIG).is_file() else ()
        raise SkillError(f"no skill at {folder}: it has no {CARD}", *bare, *_instead(folder))
    name = require_name(folder.resolve().name if name is None else name)
    files = read_files(folder, card)
    read_adapter(folder, files, base, force=force)  # or it says why not
    found = None
    if base is not None:
        found = fingerprint(base)
        if card.base is not None and not force:
            require_same_base(name, card.base, found)
    return put(library, dataclasses.replace(card, name=name, base=card.base or found), files)


def export_adapter(library: Path, name: str, path: Path) -> Path:
    """Write a skill's adapter to a new folder for PEFT; see `Library.export_peft`."""
    folder = skill_folder(library, name)
    files = read_files(folder, read_card(folder))
    with exporting(path) as aside:
        for file, content in for_peft(files, read_adapter(folder, files, None)).items():
            (aside / file).write_bytes(content)
    return path


def _instead(folder: Path) -> tuple[str, ...]:
    """A hint for a user who named a library in place of a skill, or a folder above one."""
    names: list[str] = []
    with contextlib.suppress(SkillError):
        names = skill_names(folder)
    if names:
        return (f"it is a library: name one of its folders, such as {folder / names[0]}",)
    return library_in(folder)
