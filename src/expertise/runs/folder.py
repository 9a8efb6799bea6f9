"""A run's folder: create it, find it again, lock it against other processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from expertise.errors import RunError
from expertise.runs import recipe as recipes
from expertise.runs.files import disk_errors, left_overs, nearest_beside, remove, write_atomic

T = TypeVar("T")

RECIPE = "recipe.toml"
MANIFEST = "manifest.json"
"""File of a checkpoint that holds the size and digest of every other file."""
_LOCK, _OWNER = ".lock", ".owner"


@runtime_checkable
class Keeping(Protocol):
    """A recipe that refuses changes of some keys that other recipes allow."""

    def why_kept(self, key: str) -> str:
        """Reason for which a run cannot go on with another value of a dotted key; empty if it can."""


def is_run(path: Path) -> bool:
    """True if a folder holds a run."""
    return (path / RECIPE).is_file()


def require_run(path: Path) -> Path:
    """Return the folder if it holds a run, else refuse it.

    Raises:
        RunError: it does not exist or is something else.
    """
    if not path.exists():
        raise RunError(
            f"no run at {path}", *nearest_beside(path), "`expertise train demo` makes one in runs/demo"
        )
    if not is_run(path):
        raise RunError(f"{path} is not a run: it has no {RECIPE}")
    return path


def require_free_or_run(path: Path) -> None:
    """Refuse an output folder that holds something other than a run.

    Raises:
        RunError: the path is a file, or a folder with other things in it.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a folder", "choose another --out")
    if not path.is_dir() or is_run(path):
        return
    # A run that was killed before it wrote its recipe holds these files.
    ours = {path / _LOCK, path / _OWNER, *left_overs(path)}
    if any(p not in ours for p in path.iterdir()):
        raise RunError(f"{path} is not a run and is not empty", "choose another --out")


def read_recipe(run: Path, cls: type[T]) -> T:
    """The recipe that a run was made with.

    Raises:
        RunError, RecipeError: there is no run, or its recipe was damaged.
    """
    require_run(run)
    text = (run / RECIPE).read_text("utf-8")
    return recipes.build(recipes.parse(text, str(run / RECIPE)), cls)


def adopt_recipe(run: Path, recipe: Any, may_change: Callable[[str], bool]) -> None:
    """Write a run's recipe, or replace it by one whose changes a run may go on with.

    Args:
        run: the run's folder.
        recipe: the wanted recipe.
        may_change: whether a dotted key may differ from the run's own.

    Raises:
        RunError: another key differs; the first one is named with old and new value.
    """
    if not is_run(run) or refuse_changes(run, recipe, may_change):
        write_atomic(run / RECIPE, recipes.to_toml(recipe))


def refuse_changes(run: Path, recipe: Any, may_change: Callable[[str], bool]) -> bool:
    """True if the wanted recipe differs from the run's in keys that may change; other changes are refused.

    Raises:
        RunError: another key differs; the first one is named with old and new value, and with the reason
            where it is one that other recipes may change. Or it was trained for more steps than are wanted.
    """
    changed = recipes.differences(read_recipe(run, type(recipe)), recipe)
    for key, (old, new) in changed.items():
        reason = recipe.why_kept(key) if isinstance(recipe, Keeping) else ""
        if reason or not may_change(key):
            raise RunError(
                f"{run} was made with {key} = {recipes.shown(old)}; the recipe now says {recipes.shown(new)}",
                *([reason] if reason else []),
                "use another --out for the changed recipe, or take the change back",
            )
    if "train.steps" in changed:
        refuse_fewer_steps(run, max(saved_steps(run), default=0), changed["train.steps"][1])
    return bool(changed)


def saved_steps(run: Path) -> list[int]:
    """Steps of a run's checkpoints by their names, including damaged ones that are not yet set aside."""
    names = (path.name for path in (run / "checkpoints").glob("step-*") if path.is_dir())
    numbers = (name.removeprefix("step-") for name in names)
    return sorted(int(number) for number in numbers if number.isdecimal())


def refuse_fewer_steps(run: Path, trained: int, steps: int) -> None:
    """Refuse a number of steps that is lower than what the run has already taken.

    Raises:
        RunError: it was trained for more steps.
    """
    if trained <= steps:
        return
    earlier = run / "checkpoints" / f"step-{steps}"
    raise RunError(
        f"{run} was trained for {trained:,} steps already; train.steps = {steps} is less",
        f"set train.steps to {trained} or more, or use another --out",
        *([f"as it was after {steps}, it is at {earlier}"] if earlier.is_dir() else []),
    )


def refuse_if_held(run: Path) -> None:
    """Refuse a run that another process holds, before any long work. Only `held` is a real lock.

    Raises:
        RunError: another process holds it; it is named.
    """
    if (run / _LOCK).is_file():
        with contextlib.suppress(OSError):  # who may not write there hears so from `held`
            _acquire(run).release()


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Lock a run's folder against other processes.

    Raises:
        RunError: another process holds it; it is named.
    """
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = _acquire(run)
    try:
        with disk_errors(run):
            (run / _OWNER).write_text(f"process {os.getpid()}\n", "utf-8")
            for path in left_overs(run):  # nobody else writes here now
                remove(path)
        yield
    finally:
        (run / _OWNER).unlink(missing_ok=True)
        lock.release()
        if not is_run(run):
            # The run made nothing, so its folder is removed as well.
            (run / _LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                run.rmdir()


def _acquire(run: Path) -> Any:
    """Acquire the run's lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(run / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = run / _OWNER
        name = owner.read_text("utf-8").strip() if owner.is_file() else "another process"
        raise RunError(f"{run} is in use by {name}", "wait for it, or stop it first") from None
    return lock
