"""`expertise policy compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expertise.cli.options import IS_PATH, Device, Json, Set, Threads, print_json, quoted, settings
from expertise.cli.policy.options import (
    BatchSize,
    Candidates,
    Layout,
    Pick,
    RunFolder,
    data_setting,
    require_data,
    require_policies,
)
from expertise.cli.skill.options import Force, LibraryPath, Seed, numbers_of, require_skills
from expertise.errors import RecipeError


def compose(
    base: Annotated[
        str, typer.Option("--base", help="The run of the diffusion policy under the skills."), IS_PATH
    ],
    run: RunFolder,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="PATH", help="What is wanted: a few recorded trajectories; repeat for more."
        ),
        IS_PATH,
    ] = None,
    layout: Layout = None,
    skill: Annotated[
        list[str] | None, typer.Option("--skill", metavar="NAME", help="A skill; repeat, in alpha's order.")
    ] = None,
    library: LibraryPath = Path("skills"),
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="RUN", help="In noise and actions: a further policy; repeat."),
        IS_PATH,
    ] = None,
    level: Annotated[
        str,
        typer.Option("--level", help="What is added: parameters (PSEC), noise (NSEC), actions (ASEC)."),
    ] = "parameters",
    alpha: Annotated[
        str | None,
        typer.Option("--alpha", help="The router that decides weights: context (default), fixed, top_p, …"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Constant weights, as 0.3,0.7: no --data, nothing is learnt."),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of training.")] = 1000,
    batch_size: BatchSize = 512,
    seed: Seed = None,
    min_return: Annotated[
        float | None, typer.Option("--min-return", help="Only trajectories that return so much.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", help="Only trajectories that cost no more.")
    ] = None,
    trajectories: Annotated[
        int | None, typer.Option("--trajectories", min=1, help="Only so many of these.")
    ] = None,
    candidates: Candidates = None,
    pick: Pick = None,
    force: Force = False,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compose skills: learn from a few trajectories how much each of them counts at each state.

    Example: expertise policy compose --base runs/base --library skills --skill reward --skill safety
    --data BallRun.hdf5 --max-cost 5 --min-return 400 --run runs/psec
    """
    if not data and weights is None:
        raise RecipeError("--data is missing: alpha learns from a few trajectories", "or give --weights")
    require_data(data, layout=layout)
    require_policies(base, *(policy or []))
    require_skills(library, skill or [])
    constant = _alpha(alpha, weights)
    from expertise.policy import learn as learning
    from expertise.runs import recipe as recipes
    from expertise.runs.progress import say

    values = {
        "kind": "composition",
        "base": base,
        "level": level,
        "skills": skill or [],
        "library": str(library),
        "policies": policy or [],
        "alpha": constant,
        "num_candidates": candidates,
        "pick": pick,
        "train.steps": steps,
        "train.batch_size": batch_size,
        "train.seed": seed,
        "force": force or None,
    }
    changes = [f"{key}={_toml(value)}" for key, value in values.items() if value is not None]
    kept = {"min_return": min_return, "max_cost": max_cost, "trajectories": trajectories}
    changes += [data_setting(data, layout=layout, **kept)] if data else []
    recipe = learning.recipe_of(recipes.override({}, changes + settings(set_, device, threads)))
    learning.learn(recipe, run, say)
    result = learning.result(run)
    if as_json:
        print_json({"level": level, "skills": skill or [], "policies": policy or [], **result})
    else:
        parts = ", ".join([*(skill or []), *(policy or [])])
        print(f"{run}: {parts}; let it act: expertise policy evaluate {run} --environment …")


def _alpha(kind: str | None, weights: str | None) -> dict[str, Any]:
    if weights is None:
        return {"name": kind or "context"}
    if kind not in (None, "fixed"):
        raise RecipeError(f"--weights are constant, --alpha {kind} is not", "give one of them")
    return {"name": "fixed", "values": numbers_of(weights, "--weights")}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {quoted(inner)}" for key, inner in value.items()) + "}"
    return quoted(value)
