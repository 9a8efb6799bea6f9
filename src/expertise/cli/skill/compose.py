"""`expertise skill compose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expertise.cli.options import (
    Data,
    Device,
    Domain,
    Json,
    Kind,
    Set,
    Threads,
    data_settings,
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
    names_of,
    numbers_of,
    require_skills,
    training_settings,
)
from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.lm.skills import SideBySide


def compose(
    base: Base,
    skills: Annotated[str, typer.Option("--skills", help="Which skills of the library, as a,b.")],
    out: Annotated[Path, typer.Option("--out", help="The composed model's folder; it must be new.")],
    weights: Annotated[
        str | None, typer.Option("--weights", help="Constant weights, as 0.7,-0.3; nothing is learnt.")
    ] = None,
    data: Data = None,
    kind: Kind = None,
    domain: Domain = None,
    library: LibraryPath = Path("skills"),
    router: Annotated[
        str,
        typer.Option(
            "--router", help="Who decides the weights: context, top_k, top_p, fixed, or any other router."
        ),
    ] = "context",
    reads: Annotated[
        str | None,
        typer.Option(
            "--reads",
            help="What it sees: pooled (the text so far; default), token, or layer (a router per layer).",
        ),
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
    as_json: Json = False,
) -> None:
    """Compose a model of skills, by weights or by a router that is learnt from a little text.

    With text, bits per byte are shown: of the base, of each skill alone, of all with equal weights, and of
    the composed model; where one alone is better than that, a line says so. They are on the text's held-out
    part; with --weights, which learn nothing from it, on all of it. `evaluate` and `generate` open what this
    writes.

    Example: expertise skill compose runs/demo --skills prose,code --data notes.txt --out mixed

    Without learning: expertise skill compose runs/demo --skills prose,code --weights 0.5,0.5 --out mixed
    """
    names, constant = names_of(skills, "--skills"), None
    if weights is not None:
        constant = numbers_of(weights, "--weights")
    elif data is None:
        raise RecipeError("give --weights, or --data to learn a router from")
    require_model(base)
    require_skills(library, names)
    text = text_of(data, kind, domain)
    from expertise.lm.skills.config import ComposeConfig, config_of
    from expertise.lm.skills.disk import compose_into, weigh_into
    from expertise.runs.progress import say
    from expertise.skills.library import Library

    if constant is not None:
        found, metrics = weigh_into(
            out,
            base,
            Library(library),
            names,
            constant,
            data=text,
            device=device or "auto",
            threads=threads or 0,
            force=force,
            say=say,
        )
    else:
        changes = [*data_settings(data, kind, domain), f"router={{name = {quoted(router)}}}"]
        changes += [] if reads is None else [f"reads={quoted(reads)}"]
        changes += training_settings(steps, batch_size, learning_rate, seed)
        found, metrics = compose_into(
            out,
            base,
            Library(library),
            names,
            config_of(ComposeConfig, changes + settings(set_, device, threads)),
            work or Path("runs") / f"compose-{out.resolve().name}",
            force=force,
            say=say,
        )
    if as_json:
        looked_at = {} if found is None else {"better_alone": found.better_alone()}
        print_json({"composed": str(out), "skills": names, **metrics, **looked_at})
        return
    if found is not None:
        _table(found)
        if better := found.better_alone():
            who = "the base" if better["name"] == "base" else f"skill {better['name']}"
            print(
                f"{who} alone is better on this text than what was composed: {better['bits_per_byte']:.4f} "
                f"against {better['composed']:.4f} bits per byte"
            )
    print(f"{out}: {', '.join(names)}; try it: expertise generate {out} '…' --show skills")


def _table(found: SideBySide) -> None:
    """Bits per byte: a row each, a column per domain."""
    from expertise.runs.progress import number

    rows = {
        title: row.bits_per_byte | {"mean": row.mean_bits_per_byte} for title, row in found.rows().items()
    }
    first = max(len(title) for title in rows) + 2
    print(f"{'bits per byte':<{first}}" + "".join(f"{domain:>14}" for domain in rows["base"]))
    for title, bits in rows.items():
        print(f"{title:<{first}}" + "".join(f"{number(value, 4):>14}" for value in bits.values()))
