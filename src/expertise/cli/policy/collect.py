"""The command `expertise policy collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Json, Set, print_json


def collect(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (policy-collect) or a .toml file's path: teachers and data sets."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for teachers and data; created if missing.")],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train teachers in simulators and record their episodes as data sets.

    Stopped, it goes on when it is started again; what is there already is not made twice.

    Example: expertise policy collect policy-collect --out runs/recorded
    """
    from expertise.runs import recipe as recipes
    from expertise.runs.progress import say

    name, text = recipes.find(recipe)
    values = recipes.override(recipes.parse(text, recipe), set_ or [])
    from expertise.policy.data.collect import CollectConfig
    from expertise.policy.data.collect import collect as collect_all

    paths = collect_all(recipes.build(values, CollectConfig), out, say)
    if as_json:
        print_json({"recipe": name, "folder": str(out), "data": {path.stem: str(path) for path in paths}})
        return
    for path in paths:
        print(path)
