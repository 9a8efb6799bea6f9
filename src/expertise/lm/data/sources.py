"""Open the sources that a recipe names: files, folders, hub data sets, or the installed text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from expertise.errors import DataError, counted
from expertise.lm.data.config import (
    INSTALLED,
    KINDS,
    DataConfig,
    SourceTable,
    check_domain,
    require_source,
)
from expertise.lm.data.documents import Document, Source
from expertise.lm.data.folders import files_under
from expertise.lm.data.hub import HubSource
from expertise.lm.data.installed import installed_sources
from expertise.lm.data.kinds import Kind
from expertise.lm.data.left_out import BadRows, PassedOver, size
from expertise.lm.data.readers import (
    Row,
    has_fields,
    head_of,
    is_binary,
    is_table,
    reader_for,
    shown,
    unreadable,
)
from expertise.runs.files import encoding_hint, escaped


def open_sources(data: DataConfig) -> list[Source]:
    """Open the sources that `data.source` names, in its order.

    Raises:
        RecipeError: the recipe names none, or its chat template cannot be used.
        DataError: a path does not exist, may not be read, or holds no text.
    """
    require_source(data)
    if data.source == INSTALLED:
        return list(installed_sources())
    kind: Kind = KINDS[data.kind](data)
    if isinstance(data.source, str):
        return list(_from_path(Path(data.source), kind))
    return [HubSource(table, kind) if table.hub else PathSource(table, kind) for table in data.source]


def open_both(data: DataConfig) -> tuple[list[Source], list[Source]]:
    """Open the sources of `data.source` and of `data.validation`; the second list may be empty.

    A file that both name is validation text and is not trained on, with a note.

    Raises:
        RecipeError: the recipe names no data.
        DataError: a path does not exist or holds no text, or nothing is left to train on.
    """
    sources = open_sources(data)
    if not data.validation:
        return sources, []
    validation = open_sources(dataclasses.replace(data, source=data.validation, validation=""))
    in_training, in_validation = _paths(sources), _paths(validation)
    for source in validation:
        if isinstance(source, PathSource):
            source.num_in_both = sum(path.resolve() in in_training for path in source.files)
    for source in sources:
        if isinstance(source, PathSource):
            source.files = [path for path in source.files if path.resolve() not in in_validation]
    sources = [source for source in sources if not isinstance(source, PathSource) or source.files]
    if not sources:
        raise DataError("every file of data.source is in data.validation too: nothing is left to train on")
    return sources, validation


def check_paths(data: DataConfig) -> None:
    """Refuse a recipe whose data do not exist, before anything is read.

    Raises:
        RecipeError: the recipe names none.
        DataError: a path does not exist, or may not be read.
    """
    require_source(data)
    for source in (data.source, data.validation):
        if isinstance(source, list):
            paths = [table.path for table in source if table.path]
        else:
            paths = [source] if source not in ("", INSTALLED) else []
        for path in paths:
            _check_path(Path(path))


def source_digest(data: DataConfig) -> str:
    """Return the SHA-256 of the sources' contents (for `installed`: of its list of files), in hexadecimal.

    Two equal digests mean the same text; a resumed run compares its digest with the one it began with.

    Raises:
        RecipeError: the recipe names no data.
        DataError: something is missing or cannot be read.
    """
    return digest_of(*open_both(data))


def digest_of(sources: list[Source], validation: Sequence[Source] = ()) -> str:
    """Return the SHA-256 over domains and digests of sources and validation sources, in their order."""
    listed = [[[source.domain, source.digest()] for source in side] for side in (sources, validation) if side]
    # Without a validation source the digest equals those of versions that had none.
    whole = json.dumps(listed if validation else listed[0])
    return hashlib.sha256(whole.encode()).hexdigest()


class PathSource(Source):
    """A file, or the files of a folder that match a pattern.

    Links to folders are followed. Hidden files of a folder, broken links, files with a NUL byte near their
    beginning, and plain text where records are needed, are skipped and counted.

    Args:
        table: the source's path, domain, fields and pattern.
        kind: makes documents of the files' rows.
        found: files of the folder to read in place of the pattern's, all of them usable.

    Raises:
        DataError: the path is missing, unreadable, binary, empty, a folder without text, or plain text
            where records are wanted.
    """

    def __init__(self, table: SourceTable, kind: Kind, found: _Found | None = None) -> None:
        super().__init__(table.domain)
        self.root = Path(table.path).expanduser()
        self.table, self.kind, self.fields = table, kind, kind.fields(table)
        _check_path(self.root)
        if self.root.is_dir():
            found = found or _usable(*files_under(self.root, table.pattern), kind)
        else:
            found = _single(self.root, kind)
        self.files, self.passed_over, self.tables = found.files, found.passed_over, found.tables
        self._sizes = {path: _size(path) for path in self.files}
        if not self.num_bytes():
            what = "holds no text" if self.root.is_dir() else "is empty"
            others = self.passed_over.in_words()
            raise DataError(
                f"{shown(self.root)} {what}",
                f"the source of domain {self.domain!r} needs some text",
                *([f"there are: {others}"] if others else []),
            )
        # The order is spread over sub-folders, so that a cap does not keep only the first of them.
        self.files.sort(key=lambda path: hashlib.sha256(self._id(path)).digest())
        noun = "row" if any(map(has_fields, self.files)) else "file"
        self.bad = BadRows(kind.data, table.domain, noun, alone=noun == "file" and not self.root.is_dir())
        self.num_in_both = 0
        """Of a validation source: number of its files that the training source names too."""

    def documents(self) -> Iterator[Document]:
        """Yield the files' documents; a file of plain text is one."""
        rows = (row for path in self.files for row in self._rows(path))
        yield from self.bad.documents(rows, lambda row: self.kind.document(row, self.table))

    @override
    def check(self) -> None:
        self.bad.check()

    def num_bytes(self) -> int:
        """Return the total size of the files."""
        return sum(self._sizes[path] for path in self.files)

    def digest(self) -> str:
        """Return the SHA-256 of names, contents and the fields that are read."""
        whole = hashlib.sha256("\0".join(self.fields).encode())
        for path in self.files:
            try:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise unreadable(path, error) from None
            whole.update(f"\n{content} ".encode() + self._id(path))
        return whole.hexdigest()

    @override
    def notes(self) -> list[str]:
        notes = []
        if others := self.passed_over.in_words():
            notes.append(f"left out of {shown(self.root)}: {others}")
        if self.tables:
            total = sum(self._sizes[path] for path in self.tables)
            number = counted(len(self.tables), "CSV or JSON file")
            notes.append(
                f"{shown(self.root)}: {number} ({size(total)}) read as plain text, with commas, quotes and "
                "brackets; fields are read of JSON Lines (.jsonl)"
            )
        if self.num_in_both:
            files = "1 file is" if self.num_in_both == 1 else f"{self.num_in_both:,} files are"
            both = f"{files} in data.source and data.validation, and not trained on"
            notes.append(f"{shown(self.root)}: {both}")
        return notes + self.bad.notes() + self.kind.notes()

    def _rows(self, path: Path) -> Iterator[Row | DataError]:
        name = escaped(os.fsdecode(self._id(path)))
        return reader_for(path)(path, name, self.fields, self.kind.optional_fields(self.table))

    def _id(self, path: Path) -> bytes:
        """Return a file's name within its source; as bytes, because a name need not be UTF-8."""
        return os.fsencode(path.name if path == self.root else path.relative_to(self.root).as_posix())


@dataclass
class _Found:
    """Files that a source reads, and counts of those that it skips."""

    files: list[Path]
    passed_over: PassedOver
    tables: list[Path]
    """Files with rows that are read as plain text."""


def _usable(found: list[Path], passed_over: PassedOver, kind: Kind) -> _Found:
    """Return the readable files of a folder."""
    usable = _Found([], passed_over, [])
    for path in found:
        head = b"" if has_fields(path) else head_of(path)
        if is_binary(head):
            passed_over.add(PassedOver.BINARY, _size(path))
        elif kind.records and not has_fields(path):
            passed_over.add(PassedOver.TEXT, _size(path))
        else:
            usable.files.append(path)
            if not has_fields(path) and is_table(path, head):
                usable.tables.append(path)
    return usable


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from None


def _single(path: Path, kind: Kind) -> _Found:
    """Check a file that is a source by itself."""
    if has_fields(path):
        return _Found([path], PassedOver(), [])
    head = head_of(path)
    if is_binary(head):
        raise DataError(
            f"{shown(path)} is not a text file",
            "it has a NUL byte in its first 8 KiB",
            f"if it is text: {encoding_hint(head)}",
        )
    if kind.records:
        raise DataError(
            f"{shown(path)} is read as plain text; data.kind = {kind.data.kind!r} needs records",
            "name a file that ends in .jsonl, .ndjson or .parquet",
        )
    return _Found([path], PassedOver(), [path] if is_table(path, head) else [])


def _paths(sources: list[Source]) -> set[Path]:
    """Return the files of sources, with links resolved."""
    return {path.resolve() for source in sources if isinstance(source, PathSource) for path in source.files}


def _from_path(root: Path, kind: Kind) -> Iterator[Source]:
    """Yield the domains of a bare path: a file is one; so is a folder without two sub-folders with text."""
    root = root.expanduser()
    _check_path(root)
    name = root.resolve().stem if root.is_file() else root.resolve().name
    if root.is_file():
        yield PathSource(_table(root, name), kind)
        return
    found = _usable(*files_under(root, "**/*"), kind)
    groups: dict[str, list[Path]] = {}
    for path in found.files:
        parts = path.relative_to(root).parts
        groups.setdefault(parts[0] if len(parts) > 1 else "", []).append(path)
    with_text = [key for key, files in groups.items() if any(map(_size, files))]
    if sum(key != "" for key in with_text) < 2:
        yield PathSource(_table(root, name), kind, found)
        return
    for key in set(groups) - set(with_text):
        for _ in groups[key]:
            found.passed_over.add(PassedOver.EMPTY)
    passed_over, all_tables = found.passed_over, set(found.tables)
    for key in sorted(with_text):
        tables = [path for path in groups[key] if path in all_tables]
        yield PathSource(_table(root, key or name), kind, _Found(groups[key], passed_over, tables))
        # Skipped files are reported once.
        passed_over = PassedOver()


def _table(root: Path, name: str) -> SourceTable:
    domain = escaped(name)
    check_domain(domain)
    return SourceTable(path=str(root), domain=domain)


def _check_path(root: Path) -> None:
    if not root.exists():
        raise DataError(
            f"the source {shown(root)} does not exist",
            f"a relative path starts at {shown(Path.cwd())}" if not root.is_absolute() else "check the path",
        )
    if not root.is_dir() and not root.is_file():
        raise DataError(f"the source {shown(root)} is neither a file nor a folder")
    if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
        raise DataError(f"cannot read {shown(root)}: permission denied", "check that you may read it")
