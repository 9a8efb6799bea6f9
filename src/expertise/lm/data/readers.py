"""Readers of one file each, chosen by the file's ending."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertise.errors import DataError, MissingExtra, json_kind, nearest
from expertise.runs.files import encoding_hint, escaped, marked_encoding
from expertise.runs.pointers import refuse_pointer


@dataclass(frozen=True)
class Row:
    """One row of a file or of a hub data set."""

    id: str
    """The name of the document that it becomes."""
    where: str
    """File and line, for errors."""
    values: dict[str, Any]
    """Field → what it holds; the fields that were asked for, at least."""


Reader = Callable[[Path, str, tuple[str, ...], tuple[str, ...]], Iterator[Row | DataError]]
"""(file, its id, fields, fields that a row may lack) → rows; plain text stands under the first field.

In place of a row that cannot be read stands the error that says why; the rows after it follow."""

_HEAD_BYTES = 8192
_TABLES = (".csv", ".tsv", ".json")
_JSON = re.compile(rb'\s*(?:\[\s*)?\{\s*"[^"\n]*"\s*:')
"""The beginning of JSON objects, in a list or not."""
_OTHER_FIELD = "a source's table names its fields: field, prompt_field and completion_field, messages_field"


def reader_for(path: Path) -> Reader:
    """The reader of a file, by its ending; anything unknown is plain text.

    Raises:
        DataError: the file cannot be read, or is a pointer of Git LFS.
    """
    try:
        refuse_pointer(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return _READERS.get(path.suffix.lower(), read_text)


def has_fields(path: Path) -> bool:
    """Whether a file has rows with fields, by its ending; anything unknown is plain text."""
    return path.suffix.lower() in _READERS


def head_of(path: Path) -> bytes:
    """The first 8 KiB of a file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None


def is_binary(head: bytes) -> bool:
    """Whether a file is no text, by its head: it has a NUL byte and is not marked as UTF-16 or UTF-32."""
    if b"\0" not in head:
        return False
    marked = marked_encoding(head)
    if marked not in ("UTF-16", "UTF-32"):
        return True
    try:
        # A character may be torn at the end of the head.
        codecs.getincrementaldecoder(marked)().decode(head)
    except UnicodeDecodeError:
        return True
    return False


def is_table(path: Path, head: bytes) -> bool:
    """Whether a file of plain text holds rows: CSV by its ending, JSON by that or by its head."""
    return path.suffix.lower() in _TABLES or _JSON.match(head.removeprefix(codecs.BOM_UTF8)) is not None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file or folder that the system does not let us read."""
    return DataError(
        f"cannot read {shown(path)}: {error.strerror or error}",
        "check that it exists and that you may read it",
    )


def shown(path: Path) -> str:
    """A path as messages show it: bytes that are not UTF-8 are escaped."""
    return escaped(str(path))


def read_text(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row | DataError]:
    """The whole file as one row; of one that is not UTF-8 the error names the byte's place.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        text = _decode(raw, path, 0)
    except DataError as error:
        yield error
    else:
        yield Row(name, shown(path), {fields[0]: text})


def read_json_lines(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row | DataError]:
    """Each line that is not blank is a row; the error of a line that is none names file and line.

    Raises:
        DataError: it cannot be read.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                where = f"{shown(path)}, line {number}"
                try:
                    line = _decode(raw, path, offset).removeprefix("\ufeff")
                    if "\0" in line:
                        raise DataError(f"{where}: a NUL byte, which JSON cannot hold", encoding_hint(raw))
                    values = _object(line, fields, where) if line.strip() else None
                except DataError as error:
                    yield error
                else:
                    if values is not None:
                        yield Row(f"{name}:{number}", where, values)
                offset += len(raw)
    except OSError as error:
        raise unreadable(path, error) from None


def read_parquet(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row | DataError]:
    """Its rows; needs the extra `data`.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: the file is not Parquet, or has no column of one of these names.
    """
    try:
        import pyarrow  # optional and slow to import
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", f"reading {escaped(path.name)}") from None
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            require_columns(columns, fields, shown(path))
            wanted = [*fields, *(field for field in optional if field in columns and field not in fields)]
            for batch in file.iter_batches(columns=wanted):
                for values in batch.to_pylist():
                    row += 1
                    yield Row(f"{name}:{row}", f"{shown(path)}, row {row}", values)
    except OSError as error:
        raise unreadable(path, error) from None
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{shown(path)} is not a readable Parquet file: {str(error).splitlines()[0]}"
        ) from None


def require_columns(columns: Sequence[str], fields: tuple[str, ...], where: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: the first missing one is named, with the nearest that is there.
    """
    for field in fields:
        if field not in columns:
            raise DataError(f"{where} has no column {field!r}", nearest(field, columns))


def text_value(value: object, field: str, where: str) -> str:
    """`value` if it is text.

    Raises:
        DataError: it is something else; `where` is named.
    """
    if isinstance(value, str):
        return value
    hint = "leave such rows out, or give them a text" if value is None else _OTHER_FIELD
    raise DataError(f"{where}: {field!r} is {json_kind(value)}, not text", hint)


def _object(line: str, fields: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}", "each line must be one JSON object") from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply to be read") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {json_kind(row)}, not an object", "each line must be one JSON object")
    for field in fields:
        if field not in row:
            raise DataError(
                f"{where}: no field {field!r}",
                nearest(field, row),
                _OTHER_FIELD,
            )
    return row


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{shown(path)} is not UTF-8: byte {offset + error.start}",
            encoding_hint(raw if offset == 0 else b""),
        ) from None


_READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}
