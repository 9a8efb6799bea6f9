"""Skills: low-rank parts that are added to a frozen base later, kept in a library, composed by any router.

Reading order: `skill.py` (what a skill is), `library.py` (where skills live), `peft.py` (their files);
`composing.py` (a base and skills made into one model), `adapted.py` and `experts.py` (its layers),
`composition.py` (who has which weight, call by call); `composed.py` (composed models on disk).

What is public is imported when it is first used: a library is listed without torch. No module here may bear a
public name, or Python would put the module in its place.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertise.skills.card import Card, Fingerprint
    from expertise.skills.compare import Comparison, compare_skills
    from expertise.skills.composed import load_composed, save_composed
    from expertise.skills.composed_json import Composed, is_composed, read_composed
    from expertise.skills.composing import compose
    from expertise.skills.composition import composition_of
    from expertise.skills.derived import extended, merged, skills_of
    from expertise.skills.fingerprints import fingerprint
    from expertise.skills.library import Library
    from expertise.skills.merge import Merged, merge_skills
    from expertise.skills.skill import Factors, Skill
    from expertise.skills.targets import find_targets
    from expertise.skills.verify import Verification

_HOMES = {
    "card": ("Card", "Fingerprint"),
    "compare": ("Comparison", "compare_skills"),
    "composed": ("load_composed", "save_composed"),
    "composed_json": ("Composed", "is_composed", "read_composed"),
    "composing": ("compose",),
    "composition": ("composition_of",),
    "derived": ("extended", "merged", "skills_of"),
    "fingerprints": ("fingerprint",),
    "library": ("Library",),
    "merge": ("Merged", "merge_skills"),
    "skill": ("Factors", "Skill"),
    "targets": ("find_targets",),
    "verify": ("Verification",),
}

__all__ = [
    "Card",
    "Comparison",
    "Composed",
    "Factors",
    "Fingerprint",
    "Library",
    "Merged",
    "Skill",
    "Verification",
    "compare_skills",
    "compose",
    "composition_of",
    "extended",
    "find_targets",
    "fingerprint",
    "is_composed",
    "load_composed",
    "merge_skills",
    "merged",
    "read_composed",
    "save_composed",
    "skills_of",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"expertise.skills.{module}"), name)
    raise AttributeError(f"module 'expertise.skills' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
