"""Writes docs/cli.md from the commands' own help, so that it cannot drift; a test fails when it is stale."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# Commands

Written by `make docs` from each command's `--help`; do not edit.

Results go to standard output, progress and messages to standard error. Exit codes: 0 done, 2 a mistake that
the message explains, 1 a fault of ours, 128 + n after signal n (what was trained is saved first).
"""


def page() -> str:
    """The page's text."""
    # The width of help is taken from the terminal: fix it before it is asked for.
    os.environ["COLUMNS"] = "100"
    os.environ["TERMINAL_WIDTH"] = "100"
    import typer.main

    from expertise.cli.main import build_app

    group = typer.main.get_command(build_app())
    Context: Any = group.context_class  # noqa: N806 - it is a class
    top = Context(group, info_name="expertise", terminal_width=100, max_content_width=100)
    parts = [HEAD, _help(group, top), *_commands(group, top)]
    return "\n".join(parts)


def _commands(group: Any, context: Any) -> Iterator[str]:
    """The help of every command of a group, and of those of the groups in it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = type(context)(
            command, info_name=name, parent=context, terminal_width=100, max_content_width=100
        )
        yield f"## {own.command_path}\n\n{_help(command, own)}"
        if hasattr(command, "list_commands"):
            yield from _commands(command, own)


def _help(command: Any, context: Any) -> str:
    return f"```\n{command.get_help(context).strip()}\n```\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
