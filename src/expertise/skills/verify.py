"""Check of every skill of a library: damaged files, unusable skills, missing fields of cards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from expertise.errors import SkillError
from expertise.skills.card import CARD, Card, read_card, read_files, read_whole
from expertise.skills.folders import require_library, skill_folder, skill_names
from expertise.skills.peft_config import CONFIG, WEIGHTS
from expertise.skills.reading import read_adapter

_TOLD = ("purpose", "base", "data", "data_digest")
"""Fields of a card that only a person or a base can fill in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillCheck:
    """Result of the check of one skill."""

    name: str
    """Name of the skill's folder."""
    problems: tuple[str, ...] = ()
    """Reasons why it cannot be used, one line each; a damaged file is named."""
    missing: tuple[str, ...] = ()
    """Fields of the card that are empty; all of them if there is no card."""
    notes: tuple[str, ...] = ()
    """Remarks that do not prevent its use."""

    def lines(self) -> list[str]:
        """The result as text lines; the first one is the verdict."""
        verdict = "whole" if not self.problems else "cannot be used"
        missing = [f"the card does not say: {', '.join(self.missing)}"] if self.missing else []
        return [f"{self.name}: {verdict}", *(f"  {line}" for line in (*self.problems, *self.notes, *missing))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """Result of the check of a library."""

    path: str
    """The library's folder."""
    skills: tuple[SkillCheck, ...]
    """Checks of all skills, sorted by name."""
    others: tuple[str, ...]
    """Folders that hold no file of a skill."""

    @property
    def ok(self) -> bool:
        """True if every skill can be used."""
        return not any(check.problems for check in self.skills)

    def to_json(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return {"ok": self.ok, **dataclasses.asdict(self)}


def verify(library: Path) -> Verification:
    """Check every byte of every skill of a library; nothing is written.

    Args:
        library: its folder.

    Raises:
        SkillError: there is no library, or it holds other things and no skill.
    """
    names = skill_names(require_library(library))
    folders = {path.name for path in library.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return Verification(
        path=str(library),
        skills=tuple(_check(skill_folder(library, name)) for name in names),
        others=tuple(sorted(folders - set(names))),
    )


def _check(folder: Path) -> SkillCheck:
    problems: list[str] = []
    notes: list[str] = []
    missing: tuple[str, ...] = ()
    card: Card | None = None
    try:
        card = read_card(folder)
    except SkillError as error:
        problems.append(error.message)
    else:
        missing = _missing(card)
        if card is None:
            notes.append(f"it has no {CARD}: nothing says whether its files are what was written")
        elif card.name != folder.name:
            notes.append(f"its card calls it {card.name!r}: the folder was moved, and its name counts")
    if card is not None:
        for name in dict.fromkeys((CONFIG, WEIGHTS, *card.files)):
            try:
                read_whole(folder, name, card)
            except SkillError as error:
                problems.append(error.message)
        there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        notes += [f"{name} is not in its card" for name in sorted(there - set(card.files) - {CARD})]
    if not problems:
        try:
            read_adapter(folder, read_files(folder, card), None)
        except SkillError as error:
            problems.append(error.message)
    return SkillCheck(name=folder.name, problems=tuple(problems), missing=missing, notes=tuple(notes))


def _missing(card: Card | None) -> tuple[str, ...]:
    if card is None:
        return tuple(field.name for field in dataclasses.fields(Card))
    # A skill that was made from others has their data, so an empty field is not missing.
    told = _TOLD[:2] if card.parents else _TOLD
    return tuple(name for name in told if not getattr(card, name))
