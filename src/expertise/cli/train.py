"""`expertise train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.coloured import examples_json, write_examples
from expertise.cli.options import (
    Check,
    Device,
    Json,
    Out,
    Set,
    Show,
    Threads,
    num_shown,
    print_json,
    require_there,
    settings,
)
from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.lm.recipe import Recipe


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or the path of a .toml file.")],
    out: Out = None,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    check: Check = False,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """Train a language model, or go on with a run.

    Example: expertise train demo --set train.steps=100 --out runs/short

    See what would be learnt of three examples: expertise train demo --check --show 3
    """
    from expertise.lm.recipe import refuse_early
    from expertise.runs import recipe as recipes
    from expertise.runs.progress import number, say

    wanted_examples = num_shown(show, check)
    run = out or Path("runs") / recipes.find(recipe)[0]
    name, wanted = read_recipe(recipe, settings(set_, device, threads), run)
    refuse_early(wanted, run)
    # Only now, because it brings torch: a mistake should be told at once.
    from expertise.lm import train as training

    if check:
        examples = training.check(wanted, run, say, wanted_examples)
        if as_json:
            print_json({"recipe": name, "run": str(run), "valid": True, **examples_json(examples)})
        else:
            write_examples(examples)
        return
    training.train(wanted, run, say)
    result = training.result(run)
    if as_json:
        print_json(result)
    else:
        print(f"{run}: step {result['step']}, {number(result['bits_per_byte']['mean'], 3)} bits per byte")
        print(f"see what each expert learnt: expertise inspect {run}")


def read_recipe(name: str, changes: list[str], run: Path | None = None) -> tuple[str, Recipe]:
    """A language model's recipe by name or path, with settings applied, and with what its `init` gives.

    Args:
        name: of a shipped recipe, or the path of a file.
        changes: settings, as `--set` takes them.
        run: the run that it is for, where there is one.

    Raises:
        RecipeError: there is none, or it is one of policies.
    """
    from expertise.runs import folder
    from expertise.runs import recipe as recipes

    stem, text = recipes.find(name)
    values = recipes.override(recipes.parse(text, name), changes)
    if "kind" in values:
        command = "collect" if values["kind"] == "collect" else "learn"
        raise RecipeError(f"{name} is a recipe of policies", f"expertise policy {command} {name}")
    from expertise.lm.recipe import Recipe

    init = values.get("init")
    if init and isinstance(init, str):
        if run is None or not folder.is_run(run):
            require_there(init, "init: ")
        from expertise.lm.initial import filled_in  # brings torch

        values = filled_in(values, run)
    elif run is not None:
        from expertise.lm.data.templates import with_template_text

        recipes.build(values, Recipe)  # its own rules first
        kept = run / folder.RECIPE
        own = recipes.parse(kept.read_text("utf-8"), str(kept)) if folder.is_run(run) else None
        values = with_template_text(values, own)
    return stem, recipes.build(values, Recipe)
