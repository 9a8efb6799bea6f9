"""One learner for bases, skills, critics, compositions and baselines: it makes a run from a recipe.

To add a recipe write its class, with a `prepare`, and add a line to `RECIPES` in `kinds.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.policy.learn.common import LearnRecipe, PlainOptimizer, PolicyOptimizer, Prepared
    from expertise.policy.learn.composition import CompositionRecipe, LeanConfig
    from expertise.policy.learn.critics import CriticsRecipe
    from expertise.policy.learn.kinds import RECIPES, recipe_of
    from expertise.policy.learn.learner import learn, result
    from expertise.policy.learn.policies import DirectRecipe, PolicyRecipe
    from expertise.policy.learn.skills import SkillRecipe

__all__ = [
    "RECIPES",
    "CompositionRecipe",
    "CriticsRecipe",
    "DirectRecipe",
    "LeanConfig",
    "LearnRecipe",
    "PlainOptimizer",
    "PolicyOptimizer",
    "PolicyRecipe",
    "Prepared",
    "SkillRecipe",
    "learn",
    "recipe_of",
    "result",
]

public_names(
    __name__,
    {
        "common": (
            "LearnRecipe",
            "PlainOptimizer",
            "PolicyOptimizer",
            "Prepared",
        ),
        "composition": (
            "CompositionRecipe",
            "LeanConfig",
        ),
        "critics": ("CriticsRecipe",),
        "kinds": (
            "RECIPES",
            "recipe_of",
        ),
        "learner": (
            "learn",
            "result",
        ),
        "policies": (
            "DirectRecipe",
            "PolicyRecipe",
        ),
        "skills": ("SkillRecipe",),
    },
)
