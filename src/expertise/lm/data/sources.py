"""From what a recipe names to sources: files, folders, hub data sets, or the installed text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from expertise.errors import DataError
from expertise.lm.data.config import (
    INSTALLED,
    KINDS,
    DataConfig,
    SourceTable,
    check_domain,
    require_source,
)
from expertise.lm.data.documents import Document, Source
from expertise.lm.data.hub import HubSource
from expertise.lm.data.installed import installed_sources
from expertise.lm.data.kinds import Kind
from expertise.lm.data.readers import has_fields, is_binary, reader_for, unreadable


def open_sources(data: DataConfig) -> list[Source]:
    """The sources that a recipe names, in its order.

    Raises:
        RecipeError: it names none, or its chat template cannot be used.
        DataError: a path does not exist, may not be read, or holds no text.
    """
    require_source(data)
    if data.source == INSTALLED:
        return list(installed_sources())
    kind: Kind = KINDS[data.kind](data)
    if isinstance(data.source, str):
        return list(_from_path(Path(data.source), kind))
    return [HubSource(table, kind) if table.hub else PathSource(table, kind) for table in data.source]


def source_digest(data: DataConfig) -> str:
    """SHA-256 over everything the sources hold (for `installed`: over its list of files), in hexadecimal.

    Two equal digests mean the same text; a run that goes on compares it with the one it started from.

    Raises:
        RecipeError: the recipe names no data.
        DataError: something is missing or cannot be read.
    """
    return digest_of(open_sources(data))


def digest_of(sources: list[Source]) -> str:
    """SHA-256 over domains and digests of sources, in their order."""
    listed = json.dumps([[source.domain, source.digest()] for source in sources])
    return hashlib.sha256(listed.encode()).hexdigest()


class PathSource(Source):
    """A file, or the files of a folder that match a pattern.

    Hidden files and, in a folder, files that hold a NUL byte early on, or plain text where records are
    wanted, are passed over and counted.

    Args:
        table: path, domain, fields and pattern.
        kind: makes documents of the files' rows.
        files: exactly these files of the folder instead of the pattern's.

    Raises:
        DataError: the path is missing, unreadable, binary, empty, a folder without text, or plain text
            where records are wanted.
    """

    def __init__(self, table: SourceTable, kind: Kind, files: list[Path] | None = None) -> None:
        super().__init__(table.domain)
        self.root = Path(table.path).expanduser()
        self.table, self.kind, self.fields = table, kind, kind.fields(table)
        _check_path(self.root)
        if self.root.is_dir():
            found = _files_under(self.root, table.pattern) if files is None else files
            self.files = [path for path in found if _is_usable(path, kind)]
            self.num_passed_over = len(found) - len(self.files)
        else:
            self.files, self.num_passed_over = [self.root], 0
            if is_binary(self.root):
                raise DataError(f"{self.root} is not a text file", "it has a NUL byte in its first 8 KiB")
            if not _is_usable(self.root, kind):
                raise DataError(
                    f"{self.root} is read as plain text; data.kind = {kind.data.kind!r} needs records",
                    "name a file that ends in .jsonl, .ndjson or .parquet",
                )
        if not any(path.stat().st_size for path in self.files):
            what = "holds no text" if self.root.is_dir() else "is empty"
            raise DataError(f"{self.root} {what}", f"the source of domain {self.domain!r} needs some text")
        # The order is spread over sub-folders, so that a cap does not keep only the first of them.
        self.files.sort(key=lambda path: hashlib.sha256(self._id(path).encode()).digest())

    def documents(self) -> Iterator[Document]:
        """The files' documents; a file of plain text is one."""
        for path in self.files:
            for row in reader_for(path)(
                path, self._id(path), self.fields, self.kind.optional_fields(self.table)
            ):
                yield self.kind.document(row, self.table)

    def digest(self) -> str:
        """SHA-256 of names, contents and the fields that are read."""
        whole = hashlib.sha256("\0".join(self.fields).encode())
        for path in self.files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise unreadable(path, error) from None
            whole.update(f"\n{content} {self._id(path)}".encode("utf-8", "surrogateescape"))
        return whole.hexdigest()

    def notes(self) -> list[str]:
        """How many files of a folder were passed over, and what was in the rows."""
        if not self.num_passed_over:
            return self.kind.notes()
        what = "binary or plain text files" if self.kind.records else "binary files"
        return [f"{self.root}: {self.num_passed_over} {what} were passed over", *self.kind.notes()]

    def _id(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


def _from_path(root: Path, kind: Kind) -> Iterator[Source]:
    """A bare path: a file is a domain; so is a folder, unless two or more of its sub-folders hold text."""
    root = root.expanduser()
    _check_path(root)
    name = root.resolve().stem if root.is_file() else root.resolve().name
    if root.is_file():
        yield PathSource(_table(root, name), kind)
        return
    groups: dict[str, list[Path]] = {}
    for path in _files_under(root, "**/*"):
        parts = path.relative_to(root).parts
        groups.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
    with_text = [
        key
        for key, files in groups.items()
        if any(file.stat().st_size and _is_usable(file, kind) for file in files)
    ]
    if sum(key != "" for key in with_text) < 2:
        yield PathSource(_table(root, name), kind)
        return
    for key in sorted(with_text):
        yield PathSource(_table(root, key or name), kind, groups[key])


def _is_usable(path: Path, kind: Kind) -> bool:
    return not is_binary(path) and (has_fields(path) or not kind.records)


def _table(root: Path, domain: str) -> SourceTable:
    check_domain(domain)
    return SourceTable(path=str(root), domain=domain)


def _check_path(root: Path) -> None:
    if not root.exists():
        raise DataError(
            f"the source {root} does not exist",
            f"a relative path starts at {Path.cwd()}" if not root.is_absolute() else "check the path",
        )
    if not root.is_dir() and not root.is_file():
        raise DataError(f"the source {root} is neither a file nor a folder")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise DataError(f"cannot read {root}: permission denied", "check that you may read it")


def _files_under(root: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, without hidden ones, sorted."""
    try:
        found = [path for path in root.glob(pattern) if path.is_file()]
    except OSError as error:
        raise unreadable(root, error) from None
    except ValueError as error:
        raise DataError(f"the pattern {pattern!r} cannot be used: {error}") from None
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))
