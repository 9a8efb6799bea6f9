"""Skills: low-rank parts that are added to a frozen base later, kept in a library, composed by any router.

Reading order: `skill.py` (what a skill is), `library.py` (where skills live), `peft.py` (their files);
`compose.py` (a base and skills made into one model), `adapted.py` and `experts.py` (its layers),
`composition.py` (who has which weight, call by call).
"""

from expertise.skills.compose import compose, composition_of, extended, merged, skills_of
from expertise.skills.fingerprint import Fingerprint, fingerprint
from expertise.skills.skill import Card, Factors, Skill
from expertise.skills.targets import find_targets

__all__ = [
    "Card",
    "Factors",
    "Fingerprint",
    "Skill",
    "compose",
    "composition_of",
    "extended",
    "find_targets",
    "fingerprint",
    "merged",
    "skills_of",
]
