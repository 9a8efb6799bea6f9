"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from expertise.runs.metrics import finite

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as train.steps=50."),
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
]
BasePath = Annotated[str | None, typer.Option("--base", help="Where a composed model's base is now.")]
Data = Annotated[
    str | None, typer.Option("--data", help="Text: a file or a folder, or 'installed' for this machine's.")
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


def data_settings(data: str | None, kind: str | None, domains: list[str] | None) -> list[str]:
    """`--data`, `--kind` and `--domain` as settings of `data`."""
    given = {"source": data, "kind": kind, "domains": domains or None}
    return [f"data.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


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
