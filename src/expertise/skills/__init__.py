"""Skills: low-rank parts that are added to a frozen base later, kept in a library, composed by any router.

Reading order: `skill.py` (what a skill is), `library.py` (where skills live), `peft.py` (their files).
"""

from expertise.skills.fingerprint import Fingerprint, fingerprint
from expertise.skills.skill import Card, Factors, Skill

__all__ = ["Card", "Factors", "Fingerprint", "Skill", "fingerprint"]
