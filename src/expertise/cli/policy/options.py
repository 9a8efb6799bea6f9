"""Options that several commands of `expertise policy` share."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import IS_PATH, quoted
from expertise.errors import RecipeError, RunError
from expertise.runs.files import expanded, nearest_beside

RunFolder = Annotated[Path, typer.Option("--run", "--out", help="The run's folder.")]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Recorded data: a file, the id of a Minari data set, or shipped:BallRun; repeat for more.",
    ),
    IS_PATH,
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="How --data are laid out: auto (default), dsrl, d4rl, robomimic, minari or npz.",
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option("--candidates", min=1, help="Actions drawn for each state; default: the policy's own."),
]
Pick = Annotated[
    str | None,
    typer.Option("--pick", help="Which of them: first, max-q or min-qc; default: the policy's own."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Transitions per step.")]


def require_data(data: list[str] | None, **about: str | None) -> None:
    """Refuse options that say something of --data where there are none.

    Args:
        data: what --data names.
        about: keys of `[[data]]` that have an option of their own; None: not given.

    Raises:
        RecipeError: one is given without --data.
    """
    for key, value in about.items():
        if value is not None and not data:
            raise RecipeError(f"--{key} says something of --data", f"give --data, or set {key} in [[data]]")


def data_setting(paths: list[str], **kept: str | float | int | None) -> str:
    """Paths as a setting of `data`, each with what is kept of it.

    Args:
        paths: of recorded data.
        kept: keys of `DataConfig` for all of them; None: left out.

    Raises:
        RecipeError: a number is not finite.
    """
    for key, value in kept.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"--{key.replace('_', '-')} must be a finite number, not {value}")
    rest = "".join(f", {key} = {quoted(value)}" for key, value in kept.items() if value is not None)
    return "data=[" + ", ".join(f"{{path = {quoted(path)}{rest}}}" for path in paths) + "]"


def require_policies(*paths: str) -> None:
    """Refuse the path of a policy where nothing is, before torch is imported.

    Raises:
        RunError: nothing is there.
    """
    for path in paths:
        place = Path(expanded(path))
        if not os.path.exists(place):
            raise RunError(f"no policy at {path}", *nearest_beside(place))


def named_runs(texts: list[str]) -> dict[str, str]:
    """Name → path of runs written as `NAME=PATH`, or as a path, which then is the name, too.

    Raises:
        RecipeError: a name is empty or there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        # A path may hold the sign as well.
        if not equals or "/" in name or os.path.exists(text):
            name = path = text
        if not name or not path:
            raise RecipeError(f"{text!r} lacks a name or a run", "write it as PSEC=runs/psec")
        if name in found:
            raise RecipeError(
                f"two policies are called {name!r}", "name them, as in first=runs/a second=runs/b"
            )
        found[name] = expanded(path)
    return found


def seeds_of(text: str) -> list[int]:
    """Seeds with commas between them.

    Raises:
        RecipeError: one is no whole number from 0 on.
    """
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise RecipeError(f"--seeds {text!r} are not whole numbers from 0 on", "write them as 0,1,2")
    return [int(seed) for seed in seeds]
