"""`expertise skill learn`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expertise.cli.coloured import examples_json, write_examples
from expertise.cli.options import (
    IS_PATH,
    Check,
    Device,
    Domain,
    Json,
    Kind,
    Set,
    Show,
    Threads,
    data_settings,
    num_shown,
    print_json,
    quoted,
    require_model,
    settings,
    text_of,
)
from expertise.cli.skill.options import (
    Base,
    BatchSize,
    Force,
    LearningRate,
    LibraryPath,
    Seed,
    Steps,
    Work,
    card_json,
    names_of,
    numbers_of,
    require_skills,
    training_settings,
)


def learn(
    base: Base,
    data: Annotated[
        str,
        typer.Option("--data", help="Text: a file or a folder, or 'installed' for this machine's."),
        IS_PATH,
    ],
    name: Annotated[str, typer.Option("--name", help="What the skill is called.")],
    library: LibraryPath = Path("skills"),
    purpose: Annotated[str, typer.Option("--purpose", help="What it is for, in a sentence.")] = "",
    kind: Kind = None,
    domain: Domain = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Weights to adapt: all (default), all-linear, experts, or names and ends of names, * "
            "allowed; repeat for more.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of the factors; default 8.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Strength, over the rank; default 16.")
    ] = None,
    beside: Annotated[
        str | None, typer.Option("--beside", help="Skills at work while it learns, as a,b; they stay.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Of the skills beside it, as 0.7,-0.3; default 1 each.")
    ] = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    work: Work = None,
    force: Force = False,
    set_: Set = None,
    device: Device = None,
    threads: Threads = None,
    check: Check = False,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """Learn a skill from text and add it to a library; its base stays as it is.

    Stopped, it goes on when it is started again.

    Example: expertise skill learn runs/demo --data notes.txt --name notes --steps 200

    See what would be learnt of three examples: the same with --check --show 3
    """
    examples = num_shown(show, check)
    require_model(base)
    text_of(data, kind, domain)
    require_skills(library, names_of(beside, "--beside") if beside else [])
    from expertise.lm.skills.config import LearnConfig, config_of
    from expertise.lm.skills.disk import check_learning, learn_into
    from expertise.runs.progress import number, say
    from expertise.skills.library import Library

    changes = data_settings(data, kind, domain)
    given = {"skill.targets": target or None, "skill.rank": rank, "skill.alpha": alpha}
    changes += [f"{key}={quoted(value)}" for key, value in given.items() if value is not None]
    changes += training_settings(steps, batch_size, learning_rate, seed)
    config = config_of(LearnConfig, changes + settings(set_, device, threads))
    place = Library(library), base, name, config, work or Path("runs") / f"skill-{name}"
    names = names_of(beside, "--beside") if beside else []
    numbers = numbers_of(weights, "--weights") if weights else None
    if check:
        found = check_learning(*place, beside=names, weights=numbers, force=force, say=say, show=examples)
        if as_json:
            print_json({"skill": name, "base": base, "valid": True, **examples_json(found)})
        else:
            write_examples(found)
        return
    card = learn_into(*place, beside=names, weights=numbers, purpose=purpose, force=force, say=say)
    if as_json:
        print_json(card_json(library, card))
        return
    bits = card.metrics["bits_per_byte"]
    for key, after in bits["after"].items():
        print(f"{key:<16}{number(bits['before'][key], 4):>10} → {number(after, 4)} bits per byte")
    print(f"skill {name} is in {library}; compose it: expertise skill compose {base} --skills {name},…")
