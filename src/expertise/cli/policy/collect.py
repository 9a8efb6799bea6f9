"""The command `expertise policy collect`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from expertise.cli.options import Json, Set, print_json
from expertise.errors import RecipeError


def collect(
    out: Annotated[Path, typer.Option("--out", help="The folder for teachers and data; created if missing.")],
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (policy-collect) or a .toml file's path: teachers and data sets. None with "
            "--environment."
        ),
    ] = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment",
            help="Instead of a recipe: record here; an id that Gymnasium knows (Pendulum-v1), "
            "module:function, or family/task.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="With --environment: random (default), or script in metaworld/…."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="With --environment: how many; default 20.")
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train teachers in simulators and record their episodes as data sets.

    Stopped, it goes on when it is started again; what is there already is not made twice.

    Example: expertise policy collect policy-collect --out runs/recorded, or
    expertise policy collect --environment Pendulum-v1 --episodes 20 --out runs/recorded
    """
    from expertise.runs import recipe as recipes
    from expertise.runs.progress import say

    if (recipe is None) == (environment is None):
        raise RecipeError("give a recipe or --environment, one of the two")
    if recipe is not None and (teacher is not None or episodes is not None):
        raise RecipeError("--teacher and --episodes go with --environment", "a recipe has its own rollouts")
    if recipe is not None:
        name, text = recipes.find(recipe)
        values = recipes.parse(text, recipe)
    else:
        name, values = "", _recorded(environment or "", teacher or "random", episodes or 20)
    values = recipes.override(values, set_ or [])
    from expertise.policy.data.collect import CollectConfig
    from expertise.policy.data.collect import collect as collect_all

    paths = collect_all(recipes.build(values, CollectConfig), out, say)
    if as_json:
        print_json({"recipe": name, "folder": str(out), "data": {path.stem: str(path) for path in paths}})
        return
    for path in paths:
        print(path)


def _recorded(environment: str, teacher: str, episodes: int) -> dict[str, Any]:
    """The recipe of one data set, named after the last part of its environment's name."""
    name = re.split(r"[/:]", environment.partition("@")[0])[-1] or environment
    rollout = {"teacher": teacher, "environment": environment, "episodes": episodes}
    return {"kind": "collect", "datasets": [{"name": name, "rollouts": [rollout]}]}
