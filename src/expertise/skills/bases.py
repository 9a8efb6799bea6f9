"""Bases by their path, with a registry of the kinds of models that skills can be added to."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from expertise.errors import SkillError
from expertise.registry import Registry
from expertise.runs.files import nearest_beside
from expertise.runs.folder import MANIFEST, RECIPE
from expertise.skills.composed_json import COMPOSED, is_composed

if TYPE_CHECKING:
    from torch import nn

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_MARKS = (RECIPE, MANIFEST, COMPOSED, "config.json")
"""A model's folder has one of these files: of a run, a checkpoint, a composed or a transformers model."""

BASES = Registry(
    "kind of base",
    {
        "run": "expertise.lm.bases:Run",
        "transformers": "expertise.lm.bases:Transformers",
    },
)
"""Kinds of bases, tried in this order. To add one, write a class like `BaseKind` and add a line here."""


@runtime_checkable
class BaseKind(Protocol):
    """Interface of every registered class; its methods are static."""

    @staticmethod
    def can_open(path: str) -> bool:
        """True if there is a base of this kind at a path, judged by the names of files alone."""

    @staticmethod
    def open(path: str, device: str) -> nn.Module:
        """Load the module that holds the weights, under the names that skills use."""


def kind_of(path: str) -> str:
    """Name of the kind of base at a path.

    Raises:
        SkillError: none is.
    """
    for name, kind in BASES.items():
        if kind.can_open(path):
            return name
    if is_composed(Path(path)):
        raise SkillError(f"{path} is a composed model", "name its own base")
    raise _no_model(path)


def refuse_missing(path: str) -> None:
    """Refuse a path that cannot be a model, judged by the names of files, without torch.

    Raises:
        SkillError: nothing is there, or nothing that marks a model.
    """
    where = Path(path)
    there = any(os.path.isfile(where / name) for name in _MARKS) if os.path.exists(where) else None
    if there is False or (there is None and not may_be_hub_id(path)):
        raise _no_model(path)


def may_be_hub_id(path: str) -> bool:
    """True if a path where nothing exists looks like an id on a hub of models.

    If a local folder has the id's first name, the path is mistyped and must not be looked up on the network.
    """
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).parent.exists()


def _no_model(path: str) -> SkillError:
    where = Path(path)
    if not os.path.exists(where):
        make = "`expertise train demo` makes one in runs/demo"
        return SkillError(f"no model at {path}", *nearest_beside(where), make)
    inside = [each.parent for each in sorted(where.glob(f"*/{RECIPE}"))] if where.is_dir() else []
    return SkillError(
        f"{path} holds no model: it is no run, no checkpoint and no folder of transformers (config.json)",
        *([f"there is a run in it: {inside[0]}"] if inside else []),
    )


def open_base(path: str, device: str = "cpu") -> nn.Module:
    """Load the base at a path.

    Args:
        path: a run, a checkpoint, a folder or a hub id of a causal language model of transformers.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        SkillError: there is none.
        RunError: what is there is damaged.
    """
    module: nn.Module = BASES[kind_of(path)].open(path, device)
    return module
