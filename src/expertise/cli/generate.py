"""`expertise generate`."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import BasePath, Device, Json, Model, Threads, print_json, require_model
from expertise.errors import RecipeError, nearest

if TYPE_CHECKING:
    from expertise.lm.text import Piece

COLOURS = ("#d9f0d3", "#a6dba0", "#5aae61", "#fdb863", "#e66101", "#b2182b")
"""Backgrounds for 1, 2, … parts; the last one serves all greater numbers."""
SKILL_COLOURS = ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#8dd3c7", "#d9d9d9")
"""Backgrounds of the first, second, … skill."""


def generate(
    model: Model,
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
    show: Annotated[
        str | None,
        typer.Option(help="'parts' colours each token by how many it took, 'skills' by its strongest skill."),
    ] = None,
    base: BasePath = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a text.

    Example: expertise generate runs/demo "def main(" --show parts

    A composed model, with the weight of each skill: expertise generate mixed "def main(" --show skills
    """
    if show is not None and show not in SHOWN:
        raise RecipeError(f"cannot show {show!r}", nearest(show, SHOWN))
    require_model(model)
    require_model(base)
    from expertise.lm.alpha import Alpha
    from expertise.lm.open import open_model
    from expertise.lm.text import continue_text
    from expertise.runs.device import limit_threads

    limit_threads(threads or 0)
    opened = open_model(model, device or "auto", base)
    skills = Alpha(opened).names
    if show == "skills" and not skills:
        raise RecipeError(f"{model} is no composed model: its tokens have no skills")
    pieces = continue_text(
        opened,
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
    if show == "skills" and sys.stdout.isatty():
        for index, name in enumerate(skills):
            _write(name, _colour(index), name)
            print(end="\n" if name == skills[-1] else " ")
    for piece in pieces:
        style, note = SHOWN[show](piece) if show else ("", "")
        _write(piece.text, style, note)
    print()


def _parts(piece: Piece) -> tuple[str, str]:
    if not piece.parts:
        return "", ""
    mean = sum(piece.parts) / len(piece.parts)
    return COLOURS[min(len(COLOURS), max(1, round(mean))) - 1], f"{mean:.1f}"


def _skills(piece: Piece) -> tuple[str, str]:
    if not piece.skills:
        return "", ""
    names = list(piece.skills)
    strongest = max(names, key=lambda name: abs(piece.skills[name]))
    note = " ".join(f"{name} {weight:.2f}" for name, weight in piece.skills.items())
    if not piece.skills[strongest]:
        return "", note
    return _colour(names.index(strongest)), note


def _colour(skill: int) -> str:
    return SKILL_COLOURS[skill % len(SKILL_COLOURS)]


SHOWN = {"parts": _parts, "skills": _skills}
"""What `--show` takes → a token's background on a terminal, and what stands behind it elsewhere."""


def _write(text: str, colour: str, note: str) -> None:
    if not note:
        sys.stdout.write(text)
    elif sys.stdout.isatty():
        from rich.console import Console

        style = f"black on {colour}" if colour else ""
        Console(soft_wrap=True, highlight=False).print(text, style=style, end="", markup=False)
    else:
        # No colours in a file or a pipe.
        sys.stdout.write(f"{text}[{note}]")
    sys.stdout.flush()
