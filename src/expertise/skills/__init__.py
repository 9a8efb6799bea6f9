"""Skills: low-rank parts that are added to a frozen base later, kept in a library, composed by any router.

Reading order: `skill.py` (what a skill is), `library.py` (where skills live), `peft.py` (their files);
`compose.py` (a base and skills made into one model), `adapted.py` and `experts.py` (its layers),
`composition.py` (who has which weight, call by call); `composed.py` (composed models on disk).
"""

from expertise.skills.compare import Comparison, compare_skills
from expertise.skills.compose import compose
from expertise.skills.composed import load_composed, save_composed
from expertise.skills.composed_json import Composed, is_composed, read_composed
from expertise.skills.composition import composition_of
from expertise.skills.derived import extended, merged, skills_of
from expertise.skills.fingerprint import Fingerprint, fingerprint
from expertise.skills.library import Library
from expertise.skills.merge import Merged, merge_skills
from expertise.skills.skill import Card, Factors, Skill
from expertise.skills.targets import find_targets
from expertise.skills.verify import Verification

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
