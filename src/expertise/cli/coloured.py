"""Coloured text on a terminal; words or brackets elsewhere."""

from __future__ import annotations

import itertools
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from expertise.lm.show import Example

_LEARNT, _ASIDE = "black on #a6dba0", "dim"
_OPEN, _CLOSE = "[[", "]]"
"""Brackets around learnt text where there are no colours."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters except tabs and line ends; printed unchanged they would act on the terminal."""


def has_colours() -> bool:
    """True if standard output is a terminal that shows colours and NO_COLOR is not set."""
    if not sys.stdout.isatty():
        return False
    console = _console()
    return console.color_system is not None and not console.no_color


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, emoji=False, markup=False)


def write(text: str, style: str = "") -> None:
    """Print text without a line end, in a style of `rich` if there are colours."""
    if style and has_colours():
        _console().print(text, style=style, end="")
    else:
        sys.stdout.write(text)
    sys.stdout.flush()


def write_examples(examples: list[Example]) -> None:
    """Print examples of training data, with the learnt text in a colour or in brackets."""
    if not examples:
        return
    _write_run("learnt", learnt=True)
    print(" is what the loss is on; the rest is only read")
    for number, example in enumerate(examples, start=1):
        print(
            f"\nexample {number}, step {example.step}, row {example.row}: {len(example.inputs):,} tokens, "
            f"{example.num_learnt:,} targets learnt"
        )
        for place, document in enumerate(example.documents, start=1):
            if len(example.documents) > 1:
                write(f"-- document {place}\n", _ASIDE)
            for learnt, tokens in itertools.groupby(document, lambda token: token.learnt):
                _write_run("".join(token.text for token in tokens), learnt)
            print()
        if example.is_full:
            write("-- the window is full: what may come after this is not seen\n", _ASIDE)
        if example.num_padding:
            write(f"-- padding: {example.num_padding:,} places\n", _ASIDE)


def examples_json(examples: list[Example]) -> dict[str, Any]:
    """The examples for `--json`: the key `examples`, if there are any."""
    return {"examples": [example.to_json() for example in examples]} if examples else {}


def _write_run(text: str, learnt: bool) -> None:
    """Print a stretch of text that is learnt or not, with its control characters spelled out."""
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    if not learnt:
        write(text)
    elif has_colours():
        # A line end is printed without colour, even if it is learnt.
        write(text.replace("\n", "⏎\n"), _LEARNT)
    else:
        write(f"{_OPEN}{text}{_CLOSE}")
