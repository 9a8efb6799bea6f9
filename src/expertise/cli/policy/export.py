"""The command `expertise policy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.options import IS_PATH, Json, print_json
from expertise.cli.policy.options import Pick, require_policies

UNCOVERED = ("asec", "direct")
"""Kinds of policies that docs/examples/act_numpy.py cannot run."""


def export(
    run: Annotated[
        str, typer.Argument(help="A policy: a run, a checkpoint, or a folder that `save` wrote."), IS_PATH
    ],
    to: Annotated[
        str, typer.Option("--to", help="safetensors: arrays and JSON, for NumPy; onnx: one graph.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder; it must be new or empty.")],
    pick: Pick = None,
    as_json: Json = False,
) -> None:
    """Write a policy for programs without PyTorch: networks, skills, alpha, sampler and choice of actions.

    docs/examples/act_numpy.py acts with what --to safetensors writes, with any pick; it does not cover ONNX
    folders and policies of the kinds asec and direct. A policy that picks by its critic (the paper's recipes:
    min-qc) wants noise for all its candidates; with --pick first it is exported without, for one. --to onnx
    needs the extra onnx and is held against the policy before it is written.

    Example: expertise policy export runs/psec --to onnx --out controller
    """
    require_policies(run)
    from expertise.policy.export import export_policy
    from expertise.policy.export.onnx import CLOSE
    from expertise.policy.load import load
    from expertise.runs.progress import say

    facts = export_policy(load(run), out, to, pick=pick)
    difference = facts.get("largest_difference", 0.0)
    if difference > CLOSE:
        say(
            f"warning: actions of the graph differ from the policy's by up to {difference:.1e}; rounding "
            f"in a policy that has learnt stays below {CLOSE:.0e}"
        )
    if as_json:
        print_json(facts)
        return
    for name, digest in facts["files"].items():
        print(f"{out / name}  sha256 {digest}")
    sheets, _, candidates, width = facts["noise"]
    choice = f"; {facts['pick']} takes one of the {candidates} candidates (--pick first: draw one)"
    print(f"noise: [{sheets}, states, {candidates}, {width}]" + choice * (facts["pick"] != "first"))
    if to == "safetensors" and facts["kind"] in UNCOVERED:
        print(f"docs/examples/act_numpy.py does not act with policies of kind {facts['kind']}")
    if "largest_difference" in facts:
        print(f"its actions differ from the policy's by at most {difference:.1e}")
