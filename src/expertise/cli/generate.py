"""The command `expertise generate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expertise.cli.chat import hold, read_source
from expertise.cli.coloured import has_colours, write
from expertise.cli.options import (
    IS_PATH,
    BasePath,
    Device,
    Json,
    Model,
    Threads,
    print_json,
    require_model,
)
from expertise.errors import RecipeError, nearest

if TYPE_CHECKING:
    from expertise.lm.text import Piece

COLOURS = ("#d9f0d3", "#a6dba0", "#5aae61", "#fdb863", "#e66101", "#b2182b")
"""Backgrounds for 1, 2, … parts; the last one is for all greater numbers."""
SKILL_COLOURS = ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#8dd3c7", "#d9d9d9")
"""Backgrounds of the first, second, … skill."""


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; with --chat the question to answer.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=1)] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample only from this many most likely tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample only from the most likely tokens that together pass this mass."),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The most likely token, never repeating a run of four.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sampling; default: a new one.")] = None,
    stop: Annotated[
        str | None, typer.Option(help="Text of the token that ends it; default: the end of text.")
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Ask with the model's chat template; show the answers alone. Without a prompt: a session "
            "that answers line by line until /exit or the end of the input.",
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="A system prompt for --chat (which it implies).")
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="Earlier messages, for --chat (which it implies): a JSON list of messages, or one per "
            "line; - for standard input. Without a prompt its last message is answered.",
        ),
        IS_PATH,
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(help="'parts' colours each token by how many it took, 'skills' by its strongest skill."),
    ] = None,
    base: BasePath = None,
    device: Device = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Continue a text, or hold a conversation.

    Example: expertise generate runs/demo "def main(" --show parts

    A composed model, with the weight of each skill: expertise generate mixed "def main(" --show skills

    A conversation: expertise generate runs/chat --chat --system "Answer in one word."
    """
    if show is not None and show not in SHOWN:
        raise RecipeError(f"cannot show {show!r}", nearest(show, SHOWN))
    chat = chat or system is not None or messages is not None
    if prompt is None and not chat:
        raise RecipeError("no text to continue", "give it after the model, or --chat for a conversation")
    require_model(model)
    require_model(base)
    source = None if messages is None else read_source(messages)

    from expertise.lm.alpha import Alpha
    from expertise.lm.conversation import Conversation, parse_messages
    from expertise.lm.data.messages import read_messages
    from expertise.lm.open import open_model
    from expertise.lm.text import continue_text
    from expertise.runs.device import limit_threads

    before = parse_messages(*source) if source else []
    limit_threads(threads or 0)
    opened = open_model(model, device or "auto", base)
    skills = Alpha(opened).names
    if show == "skills" and not skills:
        raise RecipeError(f"{model} is no composed model: its tokens have no skills")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "no_repeat": 4 if greedy else None,
        "seed": seed,
        "stop": stop,
    }
    if show == "skills" and has_colours() and not as_json:
        for index, name in enumerate(skills):
            _write(name, _colour(index), name)
            print(end="\n" if name == skills[-1] else " ")
    write = functools.partial(_write_pieces, show=None if as_json else show, quiet=as_json)
    if not chat:
        assert prompt is not None
        pieces = write(continue_text(opened, prompt, with_prompt=True, **settings))
        if as_json:
            _print_json({"prompt": prompt}, pieces)
        return
    before += [] if prompt is None else read_messages([{"role": "user", "content": prompt}], "the prompt")
    conversation = Conversation(opened, before, system=system or "", **settings)
    if prompt is None and source is None:
        hold(conversation, write)
    else:
        write(conversation.go_on())
    if as_json:
        asked = [message["content"] for message in conversation.messages if message["role"] == "user"]
        given = {"prompt": asked[-1] if asked else "", "messages": conversation.messages}
        _print_json(given, conversation.answer)


def _write_pieces(pieces: Iterator[Piece], show: str | None, quiet: bool) -> list[Piece]:
    """Print pieces as they come, unless `quiet`; returns all of them."""
    written = []
    for piece in pieces:
        written.append(piece)
        if not quiet:
            _write(piece.text, *(SHOWN[show](piece) if show else ("", "")))
    if not quiet:
        print(flush=True)
    return written


def _print_json(given: dict[str, Any], pieces: list[Piece]) -> None:
    text = "".join(piece.text for piece in pieces if piece.generated)
    print_json({**given, "text": text, "tokens": [dataclasses.asdict(piece) for piece in pieces]})


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
"""Values of `--show` → functions that give a token's background, and its note where there are no colours."""


def _write(text: str, colour: str, note: str) -> None:
    # A file or a pipe has no colours, so the note follows the text.
    write(text if has_colours() or not note else f"{text}[{note}]", f"black on {colour}" if colour else "")
