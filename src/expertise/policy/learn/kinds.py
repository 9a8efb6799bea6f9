"""Registry of the recipes of policies; torch is imported only when a recipe is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from expertise.errors import RecipeError, nearest
from expertise.registry import Registry
from expertise.runs import recipe as recipes

if TYPE_CHECKING:
    from expertise.policy.learn.common import LearnRecipe

RECIPES = Registry(
    "kind of recipe",
    {
        "policy": "expertise.policy.learn.policies:PolicyRecipe",
        "direct": "expertise.policy.learn.policies:DirectRecipe",
        "critics": "expertise.policy.learn.critics:CriticsRecipe",
        "skill": "expertise.policy.learn.skills:SkillRecipe",
        "composition": "expertise.policy.learn.composition:CompositionRecipe",
    },
)
"""Recipe class of each kind."""


def recipe_of(values: Mapping[str, Any]) -> LearnRecipe:
    """Build the recipe that some tables describe; their `kind` selects it.

    Raises:
        RecipeError: the kind is missing or unknown, or `recipes.build` refuses a value.
    """
    kind = values.get("kind")
    if kind is None:
        raise RecipeError("the recipe lacks kind", f"known are: {', '.join(RECIPES)}")
    if kind == "collect":
        raise RecipeError(
            "the recipe makes data, it learns nothing from them", "`expertise policy collect` takes it"
        )
    if kind not in RECIPES:
        raise RecipeError(f"kind: unknown {kind!r}", nearest(str(kind), RECIPES))
    recipe: LearnRecipe = recipes.build(values, RECIPES[kind])
    return recipe
