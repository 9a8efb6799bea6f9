"""Atomic writing of files and folders, and checks that text and file names are UTF-8."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expertise.errors import DiskError, ExpertiseError, RecipeError

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
"""Errors that are a user's mistake if they name the path that is written to, and a bug otherwise."""


_MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    # UTF-32 stands before UTF-16, because its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""Byte-order marks at the start of a file, and the encoding of each by its name in iconv."""


def marked_encoding(raw: bytes) -> str | None:
    """The encoding of a file's byte-order mark by its name in iconv; None if there is no mark.

    Args:
        raw: the file's first bytes; at least four, or all of a shorter file.
    """
    return next((name for mark, name in _MARKS if raw.startswith(mark)), None)


def encoding_hint(raw: bytes) -> str:
    """A hint for text that is not UTF-8: how to convert it from the encoding that it seems to be in.

    Args:
        raw: the file's content, or its beginning.

    Returns:
        One line, without a full stop.
    """
    marked = marked_encoding(raw)
    if marked not in (None, "UTF-8"):
        return f"its first bytes mark it as {marked}; convert it: iconv -f {marked} -t UTF-8 …"
    if unmarked := _unmarked_utf16(raw[:1024]):
        return f"it looks like {unmarked}; convert it: iconv -f {unmarked} -t UTF-8 …"
    return "convert it: iconv -f … -t UTF-8 …, where -f is the encoding that it is in, such as latin1"


def _unmarked_utf16(head: bytes) -> str | None:
    """Recognise UTF-16 without a byte-order mark by its NULs: most text has one in every second byte."""
    for name, highs in (("UTF-16LE", head[1::2]), ("UTF-16BE", head[::2])):
        if len(head) > 3 and highs.count(0) > 0.8 * len(highs) and head.count(0) < 0.6 * len(head):
            return name
    return None


def decoded(raw: bytes, where: str, error: type[ExpertiseError]) -> str:
    """The text of a file that must be UTF-8, without a byte-order mark.

    Args:
        raw: the file's content.
        where: what to call it in the message.
        error: the class to raise.

    Raises:
        ExpertiseError: it is not UTF-8; the hint names the encoding, where something tells it.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(f"{where} is not UTF-8: byte {found.start}", encoding_hint(raw)) from None
    if "\0" in text and _unmarked_utf16(raw[:1024]):
        raise error(f"{where} is not UTF-8: it is full of NUL bytes", encoding_hint(raw))
    return text


def escaped(text: str) -> str:
    r"""Text that can be printed and written: bytes that are not UTF-8 are shown as `\xe9`.

    Python keeps such bytes of a file's name as halves of surrogate pairs, which no file and no terminal
    takes.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other halves, which do not stand for bytes
        return text.encode("utf-8", "backslashreplace").decode()


def require_utf8(text: str, what: str) -> str:
    """Return the text if it can be encoded as UTF-8, else refuse it.

    Args:
        text: a prompt, a path, a value of a recipe.
        what: what to call it in the message.

    Raises:
        RecipeError: it holds bytes that are not UTF-8, or halves of surrogate pairs.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 30) : error.start + 30]
        shown = "".join(character if character.isprintable() else " " for character in escaped(near))
        raise RecipeError(
            f"{what} '{shown}' is not UTF-8",
            "write it anew, or rename the file or the folder that has such a name",
        ) from None
    return text


def nearest_beside(path: Path, pattern: str = "*") -> list[str]:
    """A hint for a mistyped path: the nearest name in its folder; none if no name is near.

    Args:
        path: what the user wrote; nothing is there.
        pattern: of the names that are looked at.
    """
    try:
        names = [each.name for each in path.parent.glob(pattern)]
    except OSError:
        return []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return [f"did you mean {escaped(str(path.with_name(close[0])))}?"] if close else []


def expand_paths(config: object, *fields: str) -> None:
    """Expand a leading `~` to the home folder in some fields of a frozen configuration.

    Args:
        config: a dataclass, in its `__post_init__`.
        fields: those that hold a path or a list of paths; what is no text in them stays as it is.

    Raises:
        RecipeError: a path holds a NUL, which no path can.
    """
    for field in fields:
        value = getattr(config, field)
        if isinstance(value, str):
            object.__setattr__(config, field, expanded(value))
        elif isinstance(value, list):
            paths = [expanded(each) if isinstance(each, str) else each for each in value]
            object.__setattr__(config, field, paths)


def expanded(path: str) -> str:
    """Expand a leading `~` of a path to the home folder.

    Raises:
        RecipeError: it holds a NUL, which no path can.
    """
    if "\0" in path:
        raise RecipeError(f"{path!r} cannot be a path: it holds a NUL")
    return os.path.expanduser(path)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk, or a path where nothing can be written, into one clear line.

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
    """True if `name` is the path, a sibling of it, or one of its parent folders or their siblings."""
    return isinstance(name, str | os.PathLike) and path.is_relative_to(Path(os.fspath(name)).parent)


def require_writable(path: Path) -> None:
    """Refuse a path where no file can be written, before long work; nothing is created.

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
    """Make a folder and its parents, and flush their entries to disk."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def left_overs(folder: Path) -> list[Path]:
    """Unfinished files that a killed process left in a folder."""
    return list(folder.glob(".*.part"))


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; a missing path is ignored."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk (fsync), where the system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a reader sees either the old content or the new.

    Raises:
        DiskError: the disk is full, read-only or forbidden; the old content stays.
    """
    data = (
        require_utf8(content, f"what is to be written to {path},").encode()
        if isinstance(content, str)
        else content
    )
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
    """Fill a temporary folder, and move it to its final path if the block ends without an error.

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
    """SHA-256 of a JSON object as hexadecimal digits, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
