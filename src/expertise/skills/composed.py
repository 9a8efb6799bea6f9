"""Composed models on disk: a folder that holds everything except the base.

composed.json         base, skills, weights or router, metrics; size and SHA-256 of every other file
router.safetensors    where a router was learnt: `<address of its layer>/<parameter>`, no address for one
                      that serves all layers
skills/<name>/        a copy of each skill's folder
held-out/             of a language model whose router was learnt: the text that was held out
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.bases import BASES, kind_of
from expertise.skills.card import CARD, now, read_card, read_files
from expertise.skills.composed_json import (
    COMPOSED,
    BaseReference,
    Composed,
    composed_text,
    file_entries,
    read_composed,
    require_whole,
)
from expertise.skills.composing import compose
from expertise.skills.composition import Composition, composition_of
from expertise.skills.derived import skills_of
from expertise.skills.fingerprints import fingerprint
from expertise.skills.folders import exporting, skill_folder
from expertise.skills.given import as_numbers
from expertise.skills.library import Library
from expertise.skills.skill import Skill

ROUTER, SKILLS = "router.safetensors", "skills"


def save_composed(
    model: nn.Module,
    path: Path | str,
    *,
    base: Path | str | None = None,
    library: Library | None = None,
    data: str = "",
    data_digest: str = "",
    metrics: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Composed:
    """Write a composed model to a new folder, atomically.

    Args:
        model: from `compose`, with constant weights or a router that was given by its config.
        path: a folder that is not there yet, or is empty.
        base: path of its base, stored for loading; None: the base must be given when the model is loaded.
        library: where its skills are from: their folders are copied as they are. None: they are written anew,
            without what their cards said.
        data, data_digest: what the router was learnt from.
        metrics: any figures, for JSON.
        notes: anything else, for JSON.
        beside: writes more files into the folder that it is given; they are checked with the others.

    Returns:
        What `composed.json` says.

    Raises:
        SkillError: the model is not composed, its router cannot be described, the library's skills are not
            the model's, or something is at `path` already.
        DiskError: the disk is full, read-only or forbidden; nothing is left there.
    """
    from safetensors.torch import save

    composition, folder = composition_of(model), Path(path)
    routers = composition.routers()
    if routers and composition.router_config is None:
        raise SkillError(
            "this model's router was given as a module: it could not be built again",
            "compose with the router's config",
        )
    reference = _reference(composition.base, base, folder)
    with exporting(folder) as aside:
        _write_skills(skills_of(model), aside / SKILLS, library, composition.base)
        if routers:
            state = {f"{a}/{k}": t for a, router in routers.items() for k, t in router.state_dict().items()}
            plain = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
            (aside / ROUTER).write_bytes(save(plain))
        if beside is not None:
            beside(aside)
        composed = Composed(
            base=reference,
            skills=list(composition.names),
            weights=None if routers else as_numbers(composition.default_weights()),
            router=composition.router_config if routers else None,
            reads=composition.reads,
            source=composition.source,
            data=data,
            data_digest=data_digest,
            metrics=dict(metrics or {}),
            notes=dict(notes or {}),
            date=now(),
            files=file_entries(aside),
        )
        (aside / COMPOSED).write_text(composed_text(composed), "utf-8")
    return composed


def load_composed(
    path: Path | str,
    base: nn.Module | Path | str | None = None,
    *,
    device: str = "cpu",
    force: bool = False,
) -> nn.Module:
    """Load a composed model, with every file of its folder checked against `composed.json`.

    Args:
        path: a folder that `save_composed` wrote.
        base: its base, or where that is now; None: where it was.
        device: where to put a base that is opened here.
        force: take a base with other weights, as long as the shapes fit.

    Returns:
        The model in evaluation mode, of the base's own class.

    Raises:
        SkillError: there is none, a file is damaged (all that are damaged are named), or the base is not
            there or another one.
    """
    folder = Path(path)
    composed = read_composed(folder)
    require_whole(folder, composed)
    if isinstance(base, nn.Module):
        root = base
    else:
        kind, where = base_of(folder, composed, base)
        root = BASES[kind].open(where, device)
    difference = None if force else composed.base.fingerprint.difference(fingerprint(root))
    if difference:
        raise SkillError(
            f"{folder} was composed on another base: this one has {difference}",
            "give the base that it was composed on: --base, or base= in Python",
        )
    skills = Library(folder / SKILLS).load_all(composed.skills, root, force=True)
    with torch.random.fork_rng(devices=[]):  # the router drawn here is thrown away
        model = compose(
            root,
            skills,
            weights=composed.weights,
            router=composed.router,
            reads=composed.reads if composed.router is not None else None,
            source=composed.source,
        )
    if composed.router is not None:
        _load_routers(folder, composition_of(model))
    return model


def base_of(folder: Path, composed: Composed, given: Path | str | None = None) -> tuple[str, str]:
    """Kind and path of a composed model's base, by its absolute path or by the path relative to the folder.

    Args:
        folder: the composed model's.
        composed: what it says of itself.
        given: where the base is now.

    Raises:
        SkillError: there is none.
    """
    base, hint = composed.base, "say where it is: --base, or base= in Python"
    if given is not None:
        return kind_of(str(given)), str(given)
    if not base.kind:
        raise SkillError(f"{folder} does not say where its base is", hint)
    if not base.relative:
        return base.kind, base.path
    for place in (Path(base.path), Path(os.path.normpath(folder.resolve() / base.relative))):
        if place.exists():
            return base.kind, str(place)
    raise SkillError(f"the base of {folder} is not at {base.path} any more", hint)


def _reference(base: nn.Module, path: Path | str | None, folder: Path) -> BaseReference:
    known = fingerprint(base)
    if path is None:
        return BaseReference(fingerprint=known)
    kind = kind_of(str(path))
    if not Path(path).exists():
        return BaseReference(kind=kind, path=str(path), fingerprint=known)
    whole = Path(path).resolve()
    return BaseReference(
        kind=kind,
        path=str(whole),
        relative=os.path.relpath(whole, folder.resolve()),
        fingerprint=known,
    )


def _write_skills(skills: list[Skill], target: Path, library: Library | None, base: nn.Module) -> None:
    """Write the skills' folders: copies from the library, or new ones."""
    if library is None:
        for skill in skills:
            Library(target).add(skill, base=base)
        (target / ".lock").unlink(missing_ok=True)
        return
    originals = library.load_all([skill.name for skill in skills], base, force=True)
    for skill, original in zip(skills, originals, strict=True):
        if not _equal(skill, original):
            raise SkillError(f"skill {skill.name} of {library.path} is not the one in the model")
        folder = skill_folder(library.path, skill.name)
        card = folder / CARD
        (target / skill.name).mkdir(parents=True)
        for name, content in read_files(folder, read_card(folder)).items():
            (target / skill.name / name).write_bytes(content)
        if card.is_file():
            (target / skill.name / card.name).write_bytes(card.read_bytes())


def _equal(one: Skill, other: Skill) -> bool:
    """True if two skills change a base equally, to the precision of the first one's dtype."""
    if set(one.factors) != set(other.factors):
        return False
    for address, mine in one.factors.items():
        theirs = other.factors[address].to(device=mine.A.device, dtype=mine.A.dtype)
        same = torch.equal(mine.A, theirs.A) and torch.equal(mine.B, theirs.B)
        # A composed model stores scalings in float32.
        if not same or abs(mine.scaling - theirs.scaling) > 1e-6 * abs(theirs.scaling):
            return False
    return True


def _load_routers(folder: Path, composition: Composition) -> None:
    from safetensors.torch import load_file

    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / ROUTER).items():
        address, _, name = key.rpartition("/")
        states.setdefault(address, {})[name] = tensor
    routers = composition.routers()
    try:
        if set(states) != set(routers):
            raise RuntimeError
        for address, router in routers.items():
            router.load_state_dict(states[address])
    except RuntimeError:
        raise SkillError(f"{folder / ROUTER} does not fit its {COMPOSED}") from None
