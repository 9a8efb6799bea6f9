"""Writes docs/cli.md from the commands' own help, so that it cannot drift; a test fails when it is stale."""

from __future__ import annotations

import os
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
    parts = [HEAD, f"```\n{group.get_help(top).strip()}\n```\n"]
    for name in group.list_commands(top):  # type: ignore[attr-defined]
        command = group.get_command(top, name)  # type: ignore[attr-defined]
        context = Context(command, info_name=name, parent=top, terminal_width=100, max_content_width=100)
        parts.append(f"## expertise {name}\n\n```\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
