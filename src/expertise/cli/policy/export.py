"""`expertise policy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import Json, print_json
from expertise.cli.policy.options import Pick


def export(
    run: Annotated[str, typer.Argument(help="A policy: a run, a checkpoint, or a folder that `save` wrote.")],
    to: Annotated[
        str, typer.Option("--to", help="safetensors: arrays and JSON, for NumPy; onnx: one graph.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder; it must be new or empty.")],
    pick: Pick = None,
    as_json: Json = False,
) -> None:
    """Write a policy for programs without PyTorch: networks, skills, alpha, sampler and choice of an action.

    docs/examples/act_numpy.py acts with what --to safetensors writes. --to onnx needs the extra onnx and is
    held against the policy before it is written.

    Example: expertise policy export runs/psec --to onnx --out controller
    """
    from expertise.policy.export import export_policy
    from expertise.policy.load import load

    facts = export_policy(load(run), out, to, pick=pick)
    if as_json:
        print_json(facts)
        return
    for name, digest in facts["files"].items():
        print(f"{out / name}  sha256 {digest}")
    if "largest_difference" in facts:
        print(f"its actions differ from the policy's by at most {facts['largest_difference']:.1e}")
