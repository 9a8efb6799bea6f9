"""The command `expertise`: a table of commands, and the exit code and message of each way to end."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from expertise import __version__
from expertise.cli.options import with_home
from expertise.errors import DiskError, ExpertiseError
from expertise.registry import Registry
from expertise.runs.files import escaped, require_utf8

COMMANDS = Registry(
    "command",
    {
        "demo": "expertise.cli.demo:demo",
        "train": "expertise.cli.train:train",
        "evaluate": "expertise.cli.evaluate:evaluate",
        "generate": "expertise.cli.generate:generate",
        "inspect": "expertise.cli.inspect:inspect",
        "plan": "expertise.cli.plan:plan",
        "recipes": "expertise.cli.recipes:recipes",
        "skill": "expertise.cli.skill:COMMANDS",
        "policy": "expertise.cli.policy:COMMANDS",
    },
)
"""The commands. To add one, write its module, which must import nothing heavy at its top, and add a line
here; a group of commands is a registry of its own."""

# Some versions of typer use the package click, others their own copy of it, so the names come from typer.
_USAGE_ERRORS: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _version(wanted: bool | None) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _callback(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Models made of experts: train them, see what each expert learnt, continue text with them."""


def build_app() -> typer.Typer:
    """The application with every registered command."""
    app = _group(COMMANDS)
    app.callback()(_callback)
    return app


def _group(commands: Registry) -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, entry in commands.items():
        if isinstance(entry, Registry):
            app.add_typer(_group(entry), name=name, help=entry.about)
        else:
            app.command(name)(with_home(entry))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 success, 2 a user's mistake, 1 a bug of ours, 128 + n for signal n."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A folder's name may hold bytes that are not text, and some terminals lack our arrows.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    from expertise.runs.signals import Terminated, terminating

    try:
        for argument in sys.argv[1:] if arguments is None else arguments:
            require_utf8(argument, "the argument")
        with terminating():
            result: Any = build_app()(args=arguments, standalone_mode=False)
    except _USAGE_ERRORS as error:
        error.show()
        return 2
    except (typer.Abort, KeyboardInterrupt):
        result = 130
    except Terminated:
        result = 143
    except ExpertiseError as error:
        return _told(error)
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`| head`): end quietly, without Python's own error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if mistake := _mistake_behind(error):
            return _told(mistake)
        traceback.print_exc()
        print(
            f"error: this is a fault of expertise {__version__}, not yours; please report it", file=sys.stderr
        )
        return 1
    # Some versions of typer turn Ctrl-C into this number, others into Abort.
    if result in (130, 143):
        how = "interrupted" if result == 130 else "terminated"
        print(f"{how}; what was saved before is whole", file=sys.stderr)
    return result if isinstance(result, int) else 0


def _told(error: ExpertiseError) -> int:
    """Print a mistake and return its exit code."""
    lines = [f"error: {error.message}", *(f"  {hint}" for hint in error.hints)]
    print("\n".join(map(escaped, lines)), file=sys.stderr)
    return 128 + getattr(error, "signal_number", 2 - 128)


def _mistake_behind(error: Exception) -> ExpertiseError | None:
    """The user's mistake that caused a Python error, for errors that any use of a file name may raise."""
    if isinstance(error, UnicodeEncodeError):
        try:
            require_utf8(error.object, "a name or a text:")
        except ExpertiseError as mistake:
            return mistake
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return DiskError(f"a name is too long for a file: {str(error.filename)[:60]}…")
    return None
