"""Loading of skills: files are checked against the card, factors against a base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from expertise.errors import SkillError
from expertise.runs.progress import say
from expertise.skills.card import CARD, Fingerprint, entries, read_card, read_files
from expertise.skills.fingerprints import fingerprint
from expertise.skills.fit import require_copies, require_fit
from expertise.skills.folders import card_of, skill_folder
from expertise.skills.peft import Adapter, read
from expertise.skills.peft_config import CONFIG, WEIGHTS
from expertise.skills.skill import Skill

FORCE = "force it: --force, in a recipe and in Python force = true"
"""Hint that names the options to accept a skill of another base."""


def read_adapter(
    folder: Path, files: Mapping[str, bytes], base: nn.Module | None, *, force: bool = False
) -> Adapter:
    """Read an adapter from the content of its files and check it against a base.

    Args:
        folder: what to call it in messages.
        files: content of its two files, by name.
        base: the model, nothing attached, that it must fit.
        force: let it bring copies of weights that are not that model's.

    Raises:
        SkillError: it cannot be composed, is damaged, or does not fit the base.
    """
    adapter = read(files[CONFIG], files[WEIGHTS], str(folder), base)
    if base is not None:
        require_fit(adapter.factors, base, folder.name)
        if not force:
            require_copies(adapter.copies, base, str(folder))
    return adapter


def weights_digest(library: Path, name: str) -> str:
    """SHA-256 of a skill's weights, which cards of skills made from it record.

    Raises:
        SkillError: there is no such skill, or a file of it is damaged.
    """
    folder = skill_folder(library, name)
    return str(entries(read_files(folder, read_card(folder)))[WEIGHTS]["sha256"])


def load_skills(
    library: Path, names: Iterable[str], base: nn.Module | None = None, *, force: bool = False
) -> list[Skill]:
    """Load skills of a library for a base; see `Library.load`. The base's fingerprint is computed once.

    Raises:
        SkillError: a skill is missing, damaged, of another base, or does not fit.
    """
    skills, known = [], None
    for name in names:
        folder, card = skill_folder(library, name), card_of(library, name)
        if card is None:
            say(f"{folder} has no {CARD}: taken as it is, unverified")
        adapter = read_adapter(folder, read_files(folder, card), base, force=force)
        if base is not None and not force and card is not None and card.base is not None:
            known = known or fingerprint(base)
            require_same_base(name, card.base, known)
        skills.append(Skill(name=name, factors=adapter.factors, card=card))
    return skills


def require_same_base(name: str, learnt_on: Fingerprint, found: Fingerprint) -> None:
    """Refuse a skill of another base.

    Raises:
        SkillError: the fingerprints differ.
    """
    if difference := learnt_on.difference(found):
        raise SkillError(
            f"skill {name} was learnt on another base: this one has {difference}",
            "take the base that it was learnt on",
            f"or, if only its weights changed, {FORCE}",
        )


def common_base(skills: Iterable[Skill], *, force: bool = False) -> Fingerprint | None:
    """The base that all skills were learnt on, by their cards; None: unknown, or several.

    Raises:
        SkillError: there are several, and that is not forced.
    """
    bases = {None if skill.card is None else skill.card.base for skill in skills}
    if len(bases - {None}) > 1 and not force:
        raise SkillError("the skills were learnt on different bases", f"if their shapes agree, {FORCE}")
    return bases.pop() if len(bases) == 1 else None
