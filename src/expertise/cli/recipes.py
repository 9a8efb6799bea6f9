"""The command `expertise recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertise.cli.options import Json, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, to start from.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one.

    Example: expertise recipes demo > mine.toml
    """
    from expertise.runs import recipe

    if name is not None:
        stem, text = recipe.find(name)
        if as_json:
            print_json({"name": stem, **recipe.parse(text, name)})
        else:
            print(text, end="")
        return
    known = {stem: _first_sentence(text) for stem, text in recipe.shipped().items()}
    if as_json:
        print_json([{"name": stem, "about": about} for stem, about in known.items()])
        return
    for stem, about in known.items():
        print(f"{stem:<22}{about}")


def _first_sentence(text: str) -> str:
    comment = " ".join(line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines())
    return comment.split(". ")[0].rstrip(".")
