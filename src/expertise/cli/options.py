"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import functools
import inspect
import json
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expertise.errors import RecipeError, RunError
from expertise.runs.files import expanded
from expertise.runs.metrics import finite

if TYPE_CHECKING:
    from expertise.lm.data.config import DataConfig

IS_PATH = "a path"
"""Marks an option that takes a path as text: it may be a name or an id instead, or have one before it."""


def with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes `~` in every path: in options of the type `Path`, and in those marked `IS_PATH`.

    The shell expands `--out ~/run`, but not `--out=~/run` and nothing in quotes.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    paths = {name for name in inspect.signature(command).parameters if _is_path(hints.get(name))}

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return command(**{key: _home(value) if key in paths else value for key, value in given.items()})

    return run


def _is_path(hint: Any) -> bool:
    marks = getattr(hint, "__metadata__", ())
    return hint is Path or IS_PATH in marks or any(map(_is_path, typing.get_args(hint)))


def _home(value: Any) -> Any:
    if isinstance(value, list):
        return [_home(each) for each in value]
    if isinstance(value, Path):
        return Path(expanded(str(value)))
    return value if value is None else expanded(value)


def require_there(path: str, before: str = "") -> None:
    """Refuse the path of a run or a checkpoint where nothing is; torch is not needed for that.

    Args:
        path: as it was given.
        before: what to put before the message.

    Raises:
        RunError: nothing is there.
    """
    from expertise.runs.folder import require_run

    place = Path(expanded(path))
    if os.path.exists(place):
        return
    try:
        require_run(place)
    except RunError as error:
        raise RunError(f"{before}{error.message}", *error.hints) from None


def _settings_have_values(settings: list[str] | None) -> list[str] | None:
    """Refuse `--set key value` before the value is taken for another argument."""
    for setting in settings or []:
        if "=" not in setting:
            raise RecipeError(
                f"--set {setting}: a setting is one word, key=value, without spaces",
                f"write it as --set {setting}=VALUE",
            )
    return settings


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_settings_have_values,
        help="Change a key of the recipe, such as train.steps=50.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="The run's folder; default runs/<recipe's name>.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=0, help="CPU threads; 0: one per core.")]
Run = Annotated[Path, typer.Argument(help="A run's folder (such as runs/demo) or a checkpoint's.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A run (such as runs/demo), a checkpoint, a composed model, or a folder or hub id of a model "
        "of transformers."
    ),
    IS_PATH,
]
BasePath = Annotated[
    str | None, typer.Option("--base", help="Where a composed model's base is now."), IS_PATH
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Text: a file or a folder, or 'installed' for this machine's."),
    IS_PATH,
]
Split = Annotated[
    str | None,
    typer.Option(
        help="validation (default), or test: look at it once, at the end. Of --data: all (default), or "
        "a side, divided as for training."
    ),
]
Kind = Annotated[str | None, typer.Option("--kind", help="Kind of data: text (default), prompt or messages.")]
Domain = Annotated[
    list[str] | None, typer.Option("--domain", help="Only this domain of the data; repeat for more.")
]

Check = Annotated[bool, typer.Option("--check", help="Validate settings and data, train nothing.")]
Show = Annotated[
    int | None,
    typer.Option("--show", min=1, help="With --check: print so many examples with what is learnt of them."),
]


def require_model(path: str | None) -> None:
    """Refuse the path of a language model where none can be, before torch is imported; None: none is given.

    Raises:
        SkillError: nothing is there, or nothing that marks a model.
    """
    from expertise.skills.bases import refuse_missing

    if path is not None:
        refuse_missing(path)


def text_of(data: str | None, kind: str | None, domains: list[str] | None) -> DataConfig | None:
    """The text that `--data`, `--kind` and `--domain` name; None: none of them is given.

    Raises:
        RecipeError: they do not go together.
        DataError: the text is not there.
    """
    from expertise.lm.data.config import DataConfig
    from expertise.lm.data.sources import check_paths
    from expertise.runs import recipe as recipes

    settings = data_settings(data, kind, domains)
    if not settings:
        return None
    found = recipes.build(recipes.override({}, settings)["data"], DataConfig)
    check_paths(found)
    return found


def quoted(value: object) -> str:
    """A text, a number or a list of them as TOML."""
    # JSON's form but for two things: TOML has no halves of surrogate pairs, and must escape DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def data_settings(data: str | None, kind: str | None, domains: list[str] | None) -> list[str]:
    """`--data`, `--kind` and `--domain` as settings of `data`."""
    given = {"source": data, "kind": kind, "domains": domains or None}
    return [f"data.{key}={quoted(value)}" for key, value in given.items() if value is not None]


def num_shown(show: int | None, check: bool) -> int:
    """How many examples `--show` asks for.

    Raises:
        RecipeError: it stands without `--check`.
    """
    if show and not check:
        raise RecipeError("--show goes with --check: it prints examples of what training would see")
    return show or 0


def print_json(result: dict[str, Any] | list[Any]) -> None:
    """A result for machines."""
    print(json.dumps(finite(result), indent=1, ensure_ascii=False, allow_nan=False))


def settings(values: list[str] | None, device: str | None = None, threads: int | None = None) -> list[str]:
    """`--set` together with the options that stand for a key."""
    result = list(values or [])
    if device is not None:
        result.append(f"train.device={device}")
    if threads is not None:
        result.append(f"train.threads={threads}")
    return result
