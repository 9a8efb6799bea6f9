"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expertise.errors import DiskError

_DISK_TROUBLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.EIO,
}
_WRONG_PLACE = {errno.EEXIST, errno.EISDIR, errno.ENOENT}
"""Of a path that is written to; of another one they are faults of ours."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk, or a path where nothing can be, into one clear line.

    Raises:
        DiskError: names the path and the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_TROUBLE and not (
            error.errno in _WRONG_PLACE and _on_the_way(error.filename, path)
        ):
            raise
        remedy = (
            "free some space there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose another folder"
        )
        raise DiskError(f"cannot write {path}: {error.strerror}", remedy) from error


def _on_the_way(name: object, path: Path) -> bool:
    """Whether a name is the path, stands beside it, or is or stands beside a folder above it."""
    return isinstance(name, str | os.PathLike) and path.is_relative_to(Path(os.fspath(name)).parent)


def require_writable(path: Path) -> None:
    """Refuse a path where no file can be written, before long work; nothing is made.

    Raises:
        DiskError: it is a folder, or what is above it is a file, read-only or forbidden.
    """
    with disk_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), above)
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), above)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, durably."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def left_overs(folder: Path) -> list[Path]:
    """What a killed process left aside in a folder while it wrote to it."""
    return list(folder.glob(".*.part"))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; what is not there is no mistake."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable, where the system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part.

    Raises:
        DiskError: the disk is full, read-only or forbidden; the old content stays.
    """
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with disk_errors(path):
        try:
            make_folder(path.parent)
            with open(beside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder aside and move it to its place when the block ends well.

    Files written in it are made durable before the move; a folder that stood there is replaced.

    Yields:
        The folder to fill.

    Raises:
        DiskError: the disk is full, read-only or forbidden; what stood at `path` stays.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with disk_errors(path):
        try:
            make_folder(path.parent)
            beside.mkdir()
            yield beside
            for file in sorted(beside.rglob("*")):
                if file.is_file():
                    with open(file, "rb+") as handle:
                        os.fsync(handle.fileno())
            sync_folder(beside)
            if path.exists():
                old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
                os.replace(path, old)
                try:
                    os.replace(beside, path)
                except BaseException:
                    os.replace(old, path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(beside, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
