"""Chat for `expertise generate --chat`: messages from a file, and a session of questions and answers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from expertise.errors import DataError, ExpertiseError, RecipeError

if TYPE_CHECKING:
    from expertise.lm.conversation import Conversation
    from expertise.lm.text import Piece

EXIT = "/exit"
"""The line that ends a session."""
_ASK = "> "


def read_source(name: str) -> tuple[bytes, str]:
    """Read a file, or standard input for `-`; returns its content and a name for messages.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if name == "-":
            return _standard_input().buffer.read(), "standard input"
        with open(name, "rb") as file:
            return file.read(), name
    except (OSError, ValueError) as error:  # a path may hold a NUL
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the messages {name}: {reason}") from None


def hold(conversation: Conversation, write: Callable[[Iterator[Piece]], object]) -> None:
    """Answer the lines of standard input until it ends or one of them is `EXIT`.

    Ctrl-C ends an answer. On a terminal a mistake is told and the session goes on.

    Args:
        conversation: what is asked.
        write: shows an answer while it is made.

    Raises:
        ExpertiseError: a line cannot be answered, and there is nobody at a terminal to say another.
    """
    at_terminal = _standard_input().isatty()
    if at_terminal:
        _tell(f"Ctrl-C ends an answer; {EXIT} or Ctrl-D ends the session")
    number = 0
    while True:
        number += 1
        try:
            line = _next_line(number)
            if line is None or line.strip() == EXIT:
                break
            if line.strip():
                _answer(conversation, line, f"line {number}", write)
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            _tell(f"\n{EXIT} or Ctrl-D ends the session")
        except ExpertiseError as error:
            if not at_terminal:
                raise
            _tell("\n".join([f"error: {error.message}", *(f"  {hint}" for hint in error.hints)]))
    if at_terminal and line is None:
        _tell("")


def _answer(
    conversation: Conversation, line: str, where: str, write: Callable[[Iterator[Piece]], object]
) -> None:
    forgotten = conversation.num_forgotten
    with contextlib.closing(conversation.ask(line, where)) as pieces:
        try:
            write(pieces)
        except KeyboardInterrupt:
            _tell("\n(the answer ends here)")
    if conversation.num_forgotten > forgotten:
        _tell(
            f"(the context of {conversation.context} tokens is full: "
            f"the oldest {conversation.num_forgotten} messages were not read)"
        )


def _next_line(number: int) -> str | None:
    """Read the next line without its end; None at the end of the input.

    Raises:
        RecipeError: it is not UTF-8.
    """
    given = _standard_input()
    try:
        if given.isatty() and sys.stdout.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - lines can be edited, and earlier ones found again
            line = input(_ASK)
        else:
            if given.isatty():
                sys.stderr.write(_ASK)
                sys.stderr.flush()
            line = given.readline()
            if not line:
                return None
        line.encode()
    except EOFError:
        return None
    except UnicodeError:
        # Some terminals and locales pass such bytes on as halves of surrogate pairs.
        raise RecipeError(f"line {number} of standard input is not UTF-8") from None
    return line.rstrip("\r\n")


def _standard_input() -> Any:
    if sys.stdin is None:
        raise RecipeError("standard input is closed", "give a prompt, or --messages FILE")
    return sys.stdin


def _tell(line: str) -> None:
    """Print a line for the user, apart from the answers."""
    print(line, file=sys.stderr, flush=True)
