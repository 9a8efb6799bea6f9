"""Kinds of recipes of policies; no torch before the recipe of a known kind is built."""

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
"""Kind → recipe."""


def recipe_of(values: Mapping[str, Any]) -> LearnRecipe:
    """The recipe that some tables describe; their `kind` says which.

    Raises:
        RecipeError: there is no kind, or an unknown one; or what `recipes.build` refuses.
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
