"""The command `expertise`: a table of commands, and how each way to end is reported."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from expertise import __version__
from expertise.errors import ExpertiseError
from expertise.registry import Registry

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
"""To add a command write its module, which must import nothing heavy at its top, and add a line here; a group
of commands is a registry of its own."""

# Some versions of typer stand on the package click, others bring their own copy of it: ask typer.
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
            app.command(name)(entry)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process: 0 done, 2 a mistake of the user, 1 our fault, 128 + n: signal n."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    from expertise.runs.signals import Terminated, terminating

    try:
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
        print("\n".join([f"error: {error.message}", *(f"  {hint}" for hint in error.hints)]), file=sys.stderr)
        return 128 + getattr(error, "signal_number", 2 - 128)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): end quietly, and keep Python from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:
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
