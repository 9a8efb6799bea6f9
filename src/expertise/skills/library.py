"""`Library`: skills on disk, one folder each. The folders are the only index."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expertise.runs.files import write_atomic
from expertise.skills.card import CARD, Card, Fingerprint, card_text, changed, now
from expertise.skills.compare import Comparison, Inputs, compare_skills
from expertise.skills.exchange import add_folder, export_adapter, import_adapter
from expertise.skills.fingerprints import fingerprint
from expertise.skills.fit import require_finite, require_fit
from expertise.skills.folders import (
    card_of,
    delete,
    move,
    put,
    require_free,
    require_name,
    skill_names,
    writing,
)
from expertise.skills.merge import Merged, merge_skills
from expertise.skills.peft_config import CONFIG, WEIGHTS
from expertise.skills.peft_export import write
from expertise.skills.reading import common_base, load_skills, weights_digest
from expertise.skills.skill import Skill
from expertise.skills.verify import Verification, verify


class Library:
    """A folder of skills, each an adapter in PEFT's own layout with a `card.json` beside it.

    Nothing that reads a library writes to it. Writers hold a lock, and what they write appears whole or not
    at all; several processes may add skills at once.

    Args:
        path: the folder; the first skill that is added makes it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def names(self) -> list[str]:
        """Names of all skills, sorted; no file is opened."""
        return skill_names(self.path)

    def card(self, name: str) -> Card | None:
        """The card of a skill, or None if its folder has no card. No weights are read.

        The folder's name counts: a folder that was moved by hand has its new name here.

        Raises:
            SkillError: there is no such skill, or its card is damaged or another version's.
        """
        return card_of(self.path, name)

    def load(self, name: str, base: nn.Module | None = None, force: bool = False) -> Skill:
        """Load a skill with its factors on the CPU, every file checked against the card.

        Args:
            name: of the skill.
            base: the model it is to be used with, nothing attached: its fingerprint must be the card's, and
                the factors must fit its layers. A card without a fingerprint leaves the shapes only.
            force: take a skill of a base with other weights; its shapes must still fit.

        Raises:
            SkillError: there is no such skill, a file is damaged (it is named), it was learnt on another
                base, or it does not fit this one.
        """
        return self.load_all([name], base, force=force)[0]

    def load_all(
        self, names: Iterable[str], base: nn.Module | None = None, force: bool = False
    ) -> list[Skill]:
        """Load several skills; the base's fingerprint is computed only once."""
        return load_skills(self.path, names, base, force=force)

    def add(
        self,
        skill: Skill,
        *,
        name: str | None = None,
        base: nn.Module | Fingerprint | None = None,
        purpose: str | None = None,
        data: str | None = None,
        data_digest: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        parents: Iterable[str] | None = None,
        scale_convention: str | None = None,
    ) -> Card:
        """Write a new skill and return its card. Fields that are not given come from the skill's own card.

        Args:
            skill: its factors are written as they are.
            name: None: the skill's own.
            base: the model it was learnt on, nothing attached, or that model's fingerprint.
            purpose: what it is for, in a sentence.
            data: what it was learnt from.
            data_digest: SHA-256 of that.
            metrics: any figures, for JSON.
            parents: skills of this library that it was made from.
            scale_convention: one of `skill.CONVENTIONS`.

        Raises:
            SkillError: the name is taken or cannot be one; the skill does not fit the base or is not finite.
            DiskError: the disk is full, read-only or forbidden; nothing is left there.
        """
        name = require_name(skill.name if name is None else name)
        module = base if isinstance(base, nn.Module) else None
        if module is not None:
            require_fit(skill.factors, module, name)
        require_finite(skill.factors, f"skill {name}")
        config, weights = write(skill.factors, module)
        card = changed(
            skill.card or Card(name=name),
            name=name,
            date=now(),
            base=fingerprint(module) if module is not None else base,
            purpose=purpose,
            data=data,
            data_digest=data_digest,
            metrics=metrics,
            parents=None if parents is None else {p: weights_digest(self.path, p) for p in parents},
            scale_convention=scale_convention,
            targets={address: made.rank for address, made in skill.factors.items()},
        )
        return put(self.path, card, {CONFIG: config.encode(), WEIGHTS: weights})

    def import_peft(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        base: nn.Module | None = None,
        purpose: str | None = None,
        data: str | None = None,
        data_digest: str | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Card:
        """Import an adapter that PEFT saved; its files are copied, or converted from an older layout.

        Converted are stacks of experts that PEFT before 0.19.1 saved; linear layers of single experts
        (transformers 4), if `base` holds their weights in stacks; and a configuration that PEFT could not
        read back.

        The folder of a skill of this library may be named too: then it gets the card that it lacks, or a
        card that knows the base.

        Args:
            path: a folder with `adapter_config.json` and `adapter_model.safetensors`.
            name: None: the folder's own.
            base: the model it belongs to, nothing attached; without it the card says that the base is
                unknown, and whoever uses the skill can compare shapes only.
            purpose, data, data_digest, metrics: for the card, as in `add`.

        Raises:
            SkillError: it is no adapter, cannot be composed (the reason is named) or does not fit the base;
                or the name is taken or cannot be one.
            DiskError: the disk is full, read-only or forbidden; nothing is left there.
        """
        known = {"purpose": purpose, "data": data, "data_digest": data_digest, "metrics": metrics}
        return import_adapter(self.path, Path(path), name, base, known)

    def add_folder(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        base: nn.Module | None = None,
        force: bool = False,
    ) -> Card:
        """Copy a skill of another library, its files and its card unchanged.

        Args:
            path: a skill's folder, with a card.
            name: None: the folder's own.
            base: the model it belongs to, nothing attached; a card that does not know its base gets it.
            force: take a skill of another base than that; its shapes must still fit.

        Raises:
            SkillError: it is no skill, is damaged (the file is named), belongs to another base, or the name
                is taken or cannot be one.
            DiskError: the disk is full, read-only or forbidden; nothing is left there.
        """
        return add_folder(self.path, Path(path), name, base, force=force)

    def export_peft(self, name: str, path: Path | str) -> Path:
        """Write a skill's adapter to a new folder, for PEFT; the card is not exported.

        PEFT can run stacked experts where the model asks their module for nothing but its output, as the
        models of transformers do; elsewhere, as in our own mixtures, it can merge them.

        Raises:
            SkillError: there is no such skill, a file of it is damaged, or something is at `path` already.
            DiskError: the disk is full, read-only or forbidden; nothing is left there.
        """
        return export_adapter(self.path, name, Path(path))

    def rename(self, old: str, new: str) -> None:
        """Rename a skill. Cards of skills made from it keep its old name and its digest.

        Raises:
            SkillError: there is no such skill, its card is damaged; the new name is taken or cannot be one.
            DiskError: the disk is full, read-only or forbidden.
        """
        card = self.card(old)
        with writing(self.path):
            target = move(self.path, old, new)
            if card is not None:
                write_atomic(target / CARD, card_text(dataclasses.replace(card, name=new)))

    def remove(self, name: str) -> None:
        """Delete a skill with its folder.

        Raises:
            SkillError: there is no such skill.
            DiskError: the disk is read-only or forbidden.
        """
        with writing(self.path):
            delete(self.path, name)

    def merge(
        self,
        names: Sequence[str],
        *,
        name: str,
        weights: Sequence[float] | None = None,
        rank: int | None = None,
        base: nn.Module | None = None,
        purpose: str | None = None,
        force: bool = False,
    ) -> Merged:
        """Add the weighted sum of several skills as a new one; see `merge_skills`.

        Its card names the parents, and under `metrics["merge"]` skills, weights, rank and error.

        Args:
            names: the skills.
            name: of the sum.
            weights: one for each; None: 1 each.
            rank: None: exact, ranks add up; else what the sum is cut to.
            base: the model, nothing attached; the skills must then fit it.
            purpose: what the sum is for.
            force: sum skills of different bases; without `base` the card then says that it is unknown.

        Raises:
            SkillError: what `load` and `merge_skills` refuse, or skills of different bases; or the name is
                taken or cannot be one.
            DiskError: the disk is full, read-only or forbidden; nothing is left there.
        """
        require_free(self.path, name)
        skills = self.load_all(names, base, force=force)
        shared = common_base(skills, force=force)
        merged = merge_skills(skills, name=name, weights=weights, rank=rank, base=base)
        record = {"skills": list(names), "weights": list(weights or [1.0] * len(names)), "rank": rank}
        self.add(
            merged.skill,
            base=shared if base is None else base,
            purpose=purpose,
            metrics={"merge": {**record, "error": merged.error}},
            parents=names,
        )
        return merged

    def compare(
        self,
        names: Sequence[str] | None = None,
        *,
        base: nn.Module | None = None,
        inputs: Inputs | None = None,
        redundant: float = 0.95,
        energy: float = 0.99,
        compositions: Mapping[str, Iterable[str]] | None = None,
        force: bool = False,
    ) -> Comparison:
        """Compare skills, by default all of the library; see `compare_skills`. Nothing is changed.

        With `base`, a model with nothing attached, the skills must be its, or with `force` of its shapes.

        Raises:
            SkillError: what `load` and `compare_skills` refuse.
        """
        return compare_skills(
            self.load_all(self.names() if names is None else names, base, force=force),
            inputs=inputs,
            redundant=redundant,
            energy=energy,
            compositions=compositions,
        )

    def verify(self) -> Verification:
        """Check every byte of every skill; see `Verification`.

        Raises:
            SkillError: there is no library.
        """
        return verify(self.path)
