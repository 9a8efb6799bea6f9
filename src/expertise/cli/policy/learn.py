"""The command `expertise policy learn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Device, Json, Set, Threads, print_json, settings
from expertise.cli.policy.options import Data, Layout, data_setting, require_data


def learn(
    recipe: Annotated[
        str, typer.Argument(help="A recipe's name (policy-own-base, …) or a .toml file's path.")
    ],
    run: Annotated[
        Path | None, typer.Option("--run", "--out", help="The run's folder; default runs/<recipe's name>.")
    ] = None,
    data: Data = None,
    layout: Layout = None,
    environment: Annotated[
        str | None,
        typer.Option(
            "--environment",
            help="Where --data were recorded (family/task, an id of Gymnasium such as Pendulum-v1, or "
            "module:function): widths are checked, and its bounds scale actions of files that declare none.",
        ),
    ] = None,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train what a recipe describes: a base, critics, a skill or a composition; or continue a run.

    The recipe's `kind` is policy, direct, critics, skill or composition; --data stands for its data. Recipes
    policy-own-… suit data of your own and take a minute or two on a CPU; the others are the paper's, with its
    settings for its own data, and take days.

    Example: expertise policy learn policy-own-base --data recorded.hdf5 --run runs/base
    """
    from expertise.policy import learn as learning
    from expertise.runs import recipe as recipes
    from expertise.runs.progress import say

    name, text = recipes.find(recipe)
    require_data(data, layout=layout, environment=environment)
    changes = [data_setting(data, layout=layout, environment=environment)] if data else []
    values = recipes.override(recipes.parse(text, recipe), changes + settings(set_, device, threads))
    wanted = learning.recipe_of(values)
    place = run or Path("runs") / name
    learning.learn(wanted, place, say)
    result = learning.result(place)
    if as_json:
        print_json({"recipe": name, "kind": wanted.kind, **result})
        return
    print(f"{place}: {wanted.kind}, step {result['step']}")
    for key, value in result["evaluation"].items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        print(f"  {key:<14}" + "  ".join(f"{part} {number:.6g}".strip() for part, number in parts))
