"""One learner for bases, skills, critics, compositions and baselines: a recipe in, a run out.

To add a recipe write its class, with a `prepare`, and add a line to `RECIPES`.
"""

from expertise.policy.learn.common import LearnRecipe, PlainOptimizer, PolicyOptimizer, Prepared
from expertise.policy.learn.composition import CompositionRecipe, LeanConfig
from expertise.policy.learn.critics import CriticsRecipe
from expertise.policy.learn.learner import RECIPES, learn, recipe_of, result
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
