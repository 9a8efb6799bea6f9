"""Readers of one file each, chosen by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertise.errors import DataError, MissingExtra, nearest


@dataclass(frozen=True)
class Row:
    """One row of a file or of a hub data set."""

    id: str
    """The name of the document that it becomes."""
    where: str
    """File and line, for errors."""
    values: dict[str, Any]
    """Field → what it holds; the fields that were asked for, at least."""


Reader = Callable[[Path, str, tuple[str, ...], tuple[str, ...]], Iterator[Row]]
"""(file, its id, fields, fields that a row may lack) → rows; plain text stands under the first field."""

_HEAD_BYTES = 8192
_OTHER_FIELD = "a source's table names its fields: field, prompt_field and completion_field, messages_field"


def reader_for(path: Path) -> Reader:
    """The reader of a file, by its ending; anything unknown is plain text."""
    return _READERS.get(path.suffix.lower(), read_text)


def has_fields(path: Path) -> bool:
    """Whether a file has rows with fields, by its ending; anything unknown is plain text."""
    return path.suffix.lower() in _READERS


def is_binary(path: Path) -> bool:
    """Whether a file that would be read as plain text has a NUL byte in its first 8 KiB.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix.lower() in _READERS:
        return False
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_HEAD_BYTES)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file or folder that the system does not let us read."""
    return DataError(
        f"cannot read {path}: {error.strerror or error}", "check that it exists and that you may read it"
    )


def read_text(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row]:
    """The whole file as one row.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the byte offset is named.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    yield Row(name, str(path), {fields[0]: _decode(raw, path, 0)})


def read_json_lines(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row]:
    """Each line that is not blank is a row.

    Raises:
        DataError: a line is not a JSON object, or lacks a field; file and line are named.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = _decode(raw, path, offset).removeprefix("\ufeff")
                offset += len(raw)
                if line.strip():
                    where = f"{path}, line {number}"
                    yield Row(f"{name}:{number}", where, _object(line, fields, where))
    except OSError as error:
        raise unreadable(path, error) from None


def read_parquet(
    path: Path, name: str, fields: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Iterator[Row]:
    """Its rows; needs the extra `data`.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: the file is not Parquet, or has no column of one of these names.
    """
    try:
        import pyarrow  # optional and slow to import
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("data", f"reading {path.name}") from None
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            require_columns(columns, fields, str(path))
            wanted = [*fields, *(field for field in optional if field in columns and field not in fields)]
            for batch in file.iter_batches(columns=wanted):
                for values in batch.to_pylist():
                    row += 1
                    yield Row(f"{name}:{row}", f"{path}, row {row}", values)
    except OSError as error:
        raise unreadable(path, error) from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None


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
    raise DataError(
        f"{where}: {field!r} is {type(value).__name__}, not text",
        _OTHER_FIELD,
    )


def _object(line: str, fields: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}", "each line must be one JSON object") from None
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply to be read") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a JSON {type(row).__name__}, not an object", "each line must be one JSON object"
        )
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
            f"{path} is not UTF-8: byte {offset + error.start}",
            "convert it (iconv -f latin1 -t utf-8 …), or leave it out",
        ) from None


_READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
}
