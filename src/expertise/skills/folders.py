"""A library's folder: which skills are in it, one writer at a time, and nothing half-written for a reader.

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
from expertise.skills.card import CARD, card_text, entries, now
from expertise.skills.peft import CONFIG, WEIGHTS
from expertise.skills.skill import Card

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{8}\.(part|old)")
_WAIT = 60.0
"""Seconds that a writer waits for another one."""


def require_name(name: str) -> str:
    """The name, when it can be a skill's.

    Raises:
        SkillError: it cannot be a folder's name everywhere, or looks like a hidden one.
    """
    if not _NAME.fullmatch(name):
        raise SkillError(
            f"{name!r} cannot be a skill's name",
            "up to 100 letters, digits, dots, dashes and underscores, the first a letter or a digit",
        )
    return name


def skill_names(library: Path) -> list[str]:
    """Every skill of a library, sorted; none where there is no library yet.

    Raises:
        SkillError: the library is a file.
    """
    _require_folder(library)
    found = library.iterdir() if library.is_dir() else ()
    return sorted(path.name for path in found if not path.name.startswith(".") and is_skill(path))


def is_skill(path: Path) -> bool:
    """Whether a path holds any file of a skill."""
    return any((path / name).exists() for name in (CONFIG, CARD, WEIGHTS))


def skill_folder(library: Path, name: str) -> Path:
    """The folder of a skill.

    Raises:
        SkillError: there is none of this name; the nearest one is named.
    """
    path = library / name
    if Path(name).name != name or name.startswith(".") or not is_skill(path):
        raise SkillError(f"no skill {name!r} in {library}", nearest(name, skill_names(library)))
    return path


def require_free(library: Path, name: str) -> Path:
    """The folder that a new skill may take.

    Raises:
        SkillError: the name is taken, or cannot be a skill's.
    """
    path = library / require_name(name)
    if path.exists():
        raise SkillError(f"{library} has a skill {name!r} already", "choose another name, or remove that one")
    return path


@contextlib.contextmanager
def writing(library: Path) -> Iterator[None]:
    """Hold a library against other writers, after theirs that were killed; makes it if need be.

    Raises:
        SkillError: it is a file, or another process goes on writing to it.
        DiskError: the disk is full, read-only or forbidden.
    """
    _require_folder(library)
    with disk_errors(library):
        make_folder(library)
    with _locked(library / ".lock", library):
        folders = [path for path in library.iterdir() if path.is_dir()]
        for folder in (library, *(path for path in folders if is_skill(path))):
            _sweep(folder)
        yield


def put(library: Path, card: Card, files: Mapping[str, bytes]) -> Card:
    """Write a new skill's folder, whole or not at all.

    Args:
        library: its folder.
        card: date and files are filled in here.
        files: content of every other file, by name.

    Returns:
        The card that was written.

    Raises:
        SkillError: the name is taken or cannot be a skill's, or another process goes on writing.
        DiskError: the disk is full, read-only or forbidden; nothing is left there.
    """
    card = dataclasses.replace(card, date=now(), files=entries(files))
    text = card_text(card)
    with writing(library), atomic_folder(require_free(library, card.name)) as aside:
        for name, content in files.items():
            (aside / name).write_bytes(content)
        (aside / CARD).write_text(text, "utf-8")
    return card


def move(library: Path, old: str, new: str) -> Path:
    """Give a skill's folder another name; who calls this holds the lock.

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
    """Remove a skill's folder; who calls this holds the lock.

    Raises:
        SkillError: there is no such skill.
        DiskError: the disk is read-only or forbidden.
    """
    folder = skill_folder(library, name)
    # Moved first: what a kill leaves half deleted must not look like a skill.
    aside = folder.with_name(f".{name}.{uuid.uuid4().hex[:8]}.old")
    with disk_errors(folder):
        os.replace(folder, aside)
        sync_folder(library)
        shutil.rmtree(aside)


@contextlib.contextmanager
def exporting(path: Path) -> Iterator[Path]:
    """Fill a new folder, anywhere, so that it appears whole or not at all.

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
    """Remove what killed writers left aside; who calls this holds the lock, so nobody is writing."""
    for path in folder.iterdir():
        if path.name.startswith(prefix) and _LEFT_OVER.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _require_folder(library: Path) -> None:
    if library.exists() and not library.is_dir():
        raise SkillError(f"{library} is a file, not a library")


@contextlib.contextmanager
def _locked(file: Path, what: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    with disk_errors(what):
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
