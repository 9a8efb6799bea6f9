"""`expertise evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from expertise.cli.options import Device, Json, Run, Threads, print_json


def evaluate(
    run: Run,
    split: Annotated[
        str, typer.Option(help="validation, or test: look at it once, at the end.")
    ] = "validation",
    max_bytes: Annotated[int, typer.Option(min=0, help="Text of each domain, in bytes; 0: all.")] = 0,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Bits per byte of each domain on held-out text, and how many parts a token took there.

    Example: expertise evaluate runs/demo --split test --json
    """
    from expertise.lm.evaluate.run import evaluate_run
    from expertise.runs.progress import say

    result = evaluate_run(run, split, max_bytes, device or "auto", threads or 0, say)
    if as_json:
        print_json(result)
        return
    print(f"{'domain':<16}{'bits per byte':>14}{'parts per token':>18}")
    parts = result["parts_per_token"]
    for domain, bits in result["bits_per_byte"].items():
        shown = parts["mean"] if domain == "mean" else parts["domains"].get(domain, 0.0)
        print(f"{domain:<16}{bits:>14.4f}{shown:>18.3f}")
