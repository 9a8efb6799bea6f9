"""Processes that write to a library, slowly enough to be killed in the middle."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from judges import made_up

from expertise.skills import Library, Skill, merge_skills

NET = {"body.0": (2, 6, 8), "body.2.1": (3, 8, 3)}
PARENTS = ("one", "two")


def skill_called(name: str) -> Skill:
    """The skill that a name stands for."""
    return made_up(NET, sum(name.encode()), name)


def sum_of_parents() -> Skill:
    """What every merged skill must be."""
    return merge_skills([skill_called(name) for name in PARENTS], name="sum").skill


def same(one: Skill, other: Skill) -> bool:
    """Whether two skills are equal to the bit."""
    return list(one.factors) == list(other.factors) and all(
        torch.equal(made.A, other.factors[address].A)
        and torch.equal(made.B, other.factors[address].B)
        and made.scaling == other.factors[address].scaling
        for address, made in one.factors.items()
    )


def add(library: Library, name: str) -> None:
    """One kind of work."""
    library.add(skill_called(name), name=name)


def merge(library: Library, name: str) -> None:
    """Another."""
    library.merge(PARENTS, name=name)


def export(library: Library, name: str) -> None:
    """And a third."""
    library.export_peft("one", library.path.parent / "out" / name)


def rename(library: Library, name: str) -> None:
    """A skill that keeps changing its name."""
    library.rename(next(n for n in library.names() if n not in PARENTS), name)


WORK: dict[str, Callable[[Library, str], None]] = {
    "add": add,
    "merge": merge,
    "export": export,
    "rename": rename,
}


def write_slowly(library: str, kind: str, number: int, log: str) -> None:
    """Do one kind of work again and again, every step on disk taking a while.

    Args:
        library: its folder.
        kind: of `WORK`.
        number: of this process: seed of the delays, and in the names.
        log: a file that gets a line for each piece of work that is done.
    """
    dice = random.Random(number)

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            time.sleep(dice.random() * 0.004)
            result = function(*positional, **named)
            time.sleep(dice.random() * 0.004)
            return result

        return call

    for place, name in (
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
        (Path, "write_bytes"),
        (Path, "write_text"),
    ):
        setattr(place, name, delayed(getattr(place, name)))
    write(library, kind, number, log, 10_000)


def write(library: str, kind: str, number: int, log: str, times: int) -> None:
    """Do one kind of work so many times."""
    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for turn in range(times):
        name = f"{kind}-{number}-{turn}"
        WORK[kind](Library(library), name)
        os.write(handle, f"{name}\n".encode())


def write_limited(library: str, file_size: int, log: str) -> None:
    """Add a skill where no file may be larger than so many bytes (`ulimit -f`); log what is said."""
    import resource

    from expertise.errors import ExpertiseError

    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        add(Library(library), "x")
    except ExpertiseError as error:
        print(error.message, file=open(log, "w"))  # noqa: SIM115 - the process ends with it
