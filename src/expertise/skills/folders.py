"""A library's folder: its skills, its lock, and atomic changes to it.

A skill is a folder that holds any of an adapter's files or a card. What begins with a dot is no skill: the
lock, and what a killed writer left aside, which the next writer sweeps away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from expertise.errors import SkillError, nearest
from expertise.runs.files import atomic_folder, disk_errors, make_folder, sync_folder
from expertise.runs.folder import is_run
from expertise.skills.card import CARD, Card, card_text, entries, now, read_card
from expertise.skills.peft_config import CONFIG, WEIGHTS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)")
_WAIT = 60.0
"""Seconds for which a writer waits for another one."""


def require_name(name: str) -> str:
    """Return the name if it is valid for a skill, else refuse it.

    Raises:
        SkillError: it cannot be a folder's name everywhere, or looks like a hidden one.
    """
    if not _NAME.fullmatch(name):
        raise SkillError(
            f"{name!r} cannot be a skill's name",
            "up to 100 letters, digits, dots, dashes and underscores, the first a letter or a digit",
        )
    return name


def require_library(library: Path) -> Path:
    """Return the folder if it exists and can be a library; it may be empty.

    Raises:
        SkillError: there is none, it is something else, or it holds other things and no skill.
    """
    if not library.exists():
        raise SkillError(
            f"no library at {library}", "learn or import a skill to make one, or name it: --library"
        )
    if not skill_names(library) and any(not path.name.startswith(".") for path in library.iterdir()):
        raise SkillError(f"{library} is no library: no folder in it is a skill", *library_in(library))
    return library


def skill_names(library: Path) -> list[str]:
    """Names of all skills of a library, sorted; empty if the library does not exist yet.

    Raises:
        SkillError: the library may not be read, or is something else.
    """
    _require_folder(library)
    try:
        found = list(library.iterdir()) if library.is_dir() else []
    except OSError as error:
        raise SkillError(f"{library} cannot be read: {error.strerror}") from error
    return sorted(path.name for path in found if not path.name.startswith(".") and is_skill(path))


def is_skill(path: Path) -> bool:
    """True if a path holds any file of a skill."""
    return any(os.path.exists(path / name) for name in (CONFIG, CARD, WEIGHTS))


def skill_folder(library: Path, name: str) -> Path:
    """The folder of a skill.

    Raises:
        SkillError: there is none of this name; the nearest one is named.
    """
    path = library / name
    if Path(name).name != name or name.startswith(".") or not is_skill(path):
        raise SkillError(f"no skill {name!r} in {library}", nearest(name, skill_names(library)))
    return path


def card_of(library: Path, name: str) -> Card | None:
    """The card of a skill with its folder's name in it; None if it has no card.

    Raises:
        SkillError: there is no such skill, or its card is damaged or another version's.
    """
    card = read_card(skill_folder(library, name))
    return None if card is None else dataclasses.replace(card, name=name)


def require_free(library: Path, name: str) -> Path:
    """The folder for a new skill, which must not exist yet.

    Raises:
        SkillError: the name is taken, or cannot be a skill's.
    """
    path = library / require_name(name)
    if path.exists():
        raise SkillError(f"{library} has a skill {name!r} already", "choose another name, or remove that one")
    return path


@contextlib.contextmanager
def writing(library: Path) -> Iterator[None]:
    """Lock a library against other writers, create it if needed, and clean up after killed writers.

    Raises:
        SkillError: it is a file, or another process goes on writing to it.
        DiskError: the disk is full, read-only or forbidden.
    """
    _require_folder(library)
    with disk_errors(library):
        make_folder(library)
    with _locked(library / ".lock", library):
        for folder in (library, *(library / name for name in skill_names(library))):
            _sweep(folder)
        yield


def put(library: Path, card: Card, files: Mapping[str, bytes]) -> Card:
    """Write a new skill's folder atomically.

    Args:
        library: its folder.
        card: its files are filled in here, and its date where it has none.
        files: content of every other file, by name.

    Returns:
        The card that was written.

    Raises:
        SkillError: the name is taken or cannot be a skill's, or another process goes on writing.
        DiskError: the disk is full, read-only or forbidden; nothing is left there.
    """
    card = dataclasses.replace(card, date=card.date or now(), files=entries(files))
    text = card_text(card)
    with writing(library), atomic_folder(require_free(library, card.name)) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        (aside / CARD).write_text(text, "utf-8")
    return card


def move(library: Path, old: str, new: str) -> Path:
    """Rename a skill's folder; the caller must hold the lock.

    Raises:
        SkillError: there is no such skill, or the new name is taken or cannot be a skill's.
        DiskError: the disk is read-only or forbidden.
    """
    folder, target = skill_folder(library, old), require_free(library, new)
    with disk_errors(target):
        os.replace(folder, target)
        sync_folder(library)
    return target


def delete(library: Path, name: str) -> None:
    """Remove a skill's folder; the caller must hold the lock.

    Raises:
        SkillError: there is no such skill.
        DiskError: the disk is read-only or forbidden.
    """
    folder = skill_folder(library, name)
    # Renamed first: a skill that is half deleted when the process is killed must not look whole.
    aside = folder.with_name(f".{name}.{uuid.uuid4().hex[:8]}.old")
    with disk_errors(folder):
        os.replace(folder, aside)
        sync_folder(library)
        shutil.rmtree(aside)


@contextlib.contextmanager
def exporting(path: Path) -> Iterator[Path]:
    """Fill a new folder anywhere; it appears only when complete.

    Yields:
        The folder to fill.

    Raises:
        SkillError: something is there already, or another process is writing there.
        DiskError: the disk is full, read-only or forbidden.
    """
    path = path.absolute()
    with disk_errors(path):
        make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with _locked(lock, path):
        try:
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise SkillError(f"{path} is there already", "choose another folder")
            _sweep(path.parent, f".{path.name}.")
            with atomic_folder(path) as aside:
                yield aside
        finally:
            lock.unlink(missing_ok=True)


def _sweep(folder: Path, prefix: str = ".") -> None:
    """Remove unfinished files of killed writers; the caller must hold the lock, so nobody is writing."""
    for path in list(folder.iterdir()):
        if path.name.startswith(prefix) and _LEFT_OVER.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def _require_folder(library: Path) -> None:
    """Refuse a path that exists and is not a library, even if it is a folder."""
    if library.exists() and not library.is_dir():
        raise SkillError(f"{library} is a file, not a library")
    if is_skill(library):
        above = library.absolute().parent
        raise SkillError(f"{library} is a skill, not a library", f"name the folder that it is in: {above}")
    if is_run(library):
        raise SkillError(f"{library} is a run, not a library")


def library_in(folder: Path) -> tuple[str, ...]:
    """A hint for a user who named a folder above a library, such as a composed model's; empty without one."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and os.access(path, os.R_OK | os.X_OK) and any(map(is_skill, path.iterdir())):
            return (f"{path} is a library",)
    return ()


@contextlib.contextmanager
def _locked(file: Path, what: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    with disk_errors(what):
        # Checked first, because FileLock waits in vain where no file can be created.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o644))
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise SkillError(
                f"{what} is in use by another process", "wait for it, or stop it first"
            ) from None
    try:
        yield
    finally:
        lock.release()
