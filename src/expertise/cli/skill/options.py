"""Options that several commands of `expertise skill` share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expertise.cli.options import IS_PATH, require_model
from expertise.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from expertise.skills.card import Card

Base = Annotated[
    str,
    typer.Argument(
        help="Base of the skills: a run (such as runs/demo), a checkpoint, or a folder or hub id of a "
        "causal language model of transformers."
    ),
    IS_PATH,
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Base of the skill: a run, a checkpoint, or a folder or hub id of a causal language model of "
        "transformers.",
    ),
    IS_PATH,
]
Force = Annotated[
    bool, typer.Option("--force", help="Take skills of another base, as long as the shapes fit.")
]
Name = Annotated[str, typer.Argument(help="The skill's name; `expertise skill list` shows all.")]
Purpose = Annotated[str | None, typer.Option("--purpose", help="Purpose of the skill, in a sentence.")]
LibraryPath = Annotated[Path, typer.Option("--library", help="The folder that skills are kept in.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps of training.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Sequences per step.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate",
        help="The highest learning rate; default 0.005 for a skill (large models want less), 0.01 for a "
        "router.",
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Seed of the first weights and of the data's order.")
]
Work = Annotated[
    Path | None,
    typer.Option("--work", help="Folder of the training; a stopped training continues from it."),
]


def training_settings(
    steps: int | None, batch_size: int | None, learning_rate: float | None, seed: int | None
) -> list[str]:
    """Convert the options of a training to settings."""
    given = {
        "train.steps": steps,
        "train.batch_size": batch_size,
        "optimizer.learning_rate": learning_rate,
        "train.seed": seed,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def names_of(text: str, option: str) -> list[str]:
    """Parse names with commas between them.

    Raises:
        RecipeError: one is empty.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise RecipeError(f"{option} {text!r}: an empty name", "write names with commas between them, as a,b")
    return names


def numbers_of(text: str, option: str) -> list[float]:
    """Parse numbers with commas between them.

    Raises:
        RecipeError: one is no number.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"{option} {text!r} is not numbers", "write them with commas between them, as 0.7,-0.3"
        ) from None


def require_skills(library: Path, names: list[str]) -> None:
    """Refuse names of skills that a library lacks, before torch is imported; with no names, do nothing.

    Raises:
        SkillError: there is no library, or no such skill.
    """
    from expertise.skills.folders import require_library, skill_folder

    for name in names:
        skill_folder(require_library(library), name)


def opened(base: str | None) -> nn.Module | None:
    """Load the model that `--base` names; None without it."""
    require_model(base)
    from expertise.skills.bases import open_base

    return None if base is None else open_base(base)


def card_json(library: Path, card: Card) -> dict[str, Any]:
    """A card for JSON, with the library that it comes from."""
    return {"library": str(library), **dataclasses.asdict(card)}
