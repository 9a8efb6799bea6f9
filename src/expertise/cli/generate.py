"""`expertise generate`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import Device, Json, Run, Threads, print_json
from expertise.errors import RecipeError, nearest

if TYPE_CHECKING:
    from expertise.lm.text import Piece

COLOURS = ("#d9f0d3", "#a6dba0", "#5aae61", "#fdb863", "#e66101", "#b2182b")
"""Backgrounds for 1, 2, … parts; the last one serves all greater numbers."""


def generate(
    run: Run,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only so many most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only tokens that together pass this mass.")] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The most likely token, never repeating a run of four.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the sampling; default: a new one.")] = None,
    stop: Annotated[
        str | None, typer.Option(help="Text of the token that ends it; default: the end of text.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask with the run's chat template; show the answer alone.")
    ] = False,
    show: Annotated[str | None, typer.Option(help="'parts' colours each token by how many it took.")] = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a text.

    Example: expertise generate runs/demo "def main(" --show parts
    """
    from expertise.lm import load
    from expertise.lm.text import continue_text
    from expertise.runs.device import limit_threads

    if show not in (None, "parts"):
        raise RecipeError(f"cannot show {show!r}", nearest(str(show), ["parts"]))
    limit_threads(threads or 0)
    model = load(run, device or "auto")
    pieces = continue_text(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        no_repeat=4 if greedy else None,
        seed=seed,
        stop=stop,
        with_prompt=not chat,
        chat=chat,
    )
    if as_json:
        given = list(pieces)
        text = "".join(piece.text for piece in given if piece.generated)
        print_json({"prompt": prompt, "text": text, "tokens": [dataclasses.asdict(piece) for piece in given]})
        return
    for piece in pieces:
        _write(piece, show == "parts")
    print()


def _write(piece: Piece, coloured: bool) -> None:
    if not coloured or not piece.parts:
        sys.stdout.write(piece.text)
    elif sys.stdout.isatty():
        from rich.console import Console

        mean = sum(piece.parts) / len(piece.parts)
        colour = COLOURS[min(len(COLOURS), max(1, round(mean))) - 1]
        Console(soft_wrap=True, highlight=False).print(
            piece.text, style=f"black on {colour}", end="", markup=False
        )
    else:
        # No colours in a file or a pipe: the mean number over the layers stands behind each token.
        sys.stdout.write(f"{piece.text}[{sum(piece.parts) / len(piece.parts):.1f}]")
    sys.stdout.flush()
