"""Bases by their path: every kind of model that skills can stand on registers here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from expertise.errors import SkillError
from expertise.registry import Registry
from expertise.runs.files import nearest_beside
from expertise.skills.composed_json import is_composed

BASES = Registry(
    "kind of base",
    {
        "run": "expertise.lm.bases:Run",
        "transformers": "expertise.lm.bases:Transformers",
    },
)
"""In the order in which they are asked. To add a kind write a class like `BaseKind` and add a line here."""


@runtime_checkable
class BaseKind(Protocol):
    """What every registered class can do, without an instance."""

    @staticmethod
    def can_open(path: str) -> bool:
        """Whether there is a base of this kind at a path; nothing is read but names of files."""

    @staticmethod
    def open(path: str, device: str) -> nn.Module:
        """The module that holds the weights, under the names that skills know."""


def kind_of(path: str) -> str:
    """Which kind of base is at a path.

    Raises:
        SkillError: none is.
    """
    for name, kind in BASES.items():
        if kind.can_open(path):
            return name
    where = Path(path)
    if is_composed(where):
        raise SkillError(f"{path} is a composed model", "name its own base")
    if where.exists():
        inside = [each.parent for each in sorted(where.glob("*/recipe.toml"))] if where.is_dir() else []
        near = [f"there is a run in it: {inside[0]}"] if inside else []
        raise SkillError(
            f"{path} holds no model: it is no run, no checkpoint and no folder of transformers (config.json)",
            *near,
        )
    raise SkillError(
        f"no model at {path}", *nearest_beside(where), "`expertise train demo` makes one in runs/demo"
    )


def open_base(path: str, device: str = "cpu") -> nn.Module:
    """The base at a path.

    Args:
        path: a run, a checkpoint, a folder or a hub id of a causal language model of transformers.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        SkillError: there is none.
        RunError: what is there is damaged.
    """
    module: nn.Module = BASES[kind_of(path)].open(path, device)
    return module
