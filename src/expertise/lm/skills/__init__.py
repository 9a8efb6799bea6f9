"""Skills of language models: learnt from text, composed by a router that is learnt from a little more.

Reading order: `config.py` (what can be said), `learn.py` (learn a skill, learn a router), `task.py` and
`training.py` (as the training loop sees that), `compare.py` (what came of it), `disk.py` (from path to path).
"""

from expertise.lm.skills.compare import SideBySide, comparison, evaluate_weights
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.lm.skills.learn import LearntRouter, LearntSkill, learn_router, learn_skill

__all__ = [
    "ComposeConfig",
    "LearnConfig",
    "LearntRouter",
    "LearntSkill",
    "SideBySide",
    "comparison",
    "evaluate_weights",
    "learn_router",
    "learn_skill",
]
