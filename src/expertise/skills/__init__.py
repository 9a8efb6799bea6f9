"""Skills: low-rank parts that are added to a frozen base later, kept in a library, composed by any router.

Reading order: `skill.py` (what a skill is), `library.py` (where skills live), `peft.py` (their files);
`compose.py` (a base and skills made into one model), `adapted.py` and `experts.py` (its layers),
`composition.py` (who has which weight, call by call).
"""

from expertise.skills.compare import Comparison, compare_skills
from expertise.skills.compose import compose
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
    "merge_skills",
    "merged",
    "skills_of",
]
