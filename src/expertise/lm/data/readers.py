"""Readers of one file each, chosen by the file's ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from expertise.errors import DataError, MissingExtra, nearest

Reader = Callable[[Path, str, str], Iterator[tuple[str, str]]]
"""(file, its id, field) → (document's id, text); the field is unused for plain text."""

_HEAD_BYTES = 8192


def reader_for(path: Path) -> Reader:
    """The reader of a file, by its ending; anything unknown is plain text."""
    return _READERS.get(path.suffix.lower(), read_text)


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


def read_text(path: Path, name: str, _field: str) -> Iterator[tuple[str, str]]:
    """The whole file as one document.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the byte offset is named.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    yield name, _decode(raw, path, 0)


def read_json_lines(path: Path, name: str, field: str) -> Iterator[tuple[str, str]]:
    """Each line that is not blank is a document.

    Raises:
        DataError: a line is not a JSON object, or has no text under `field`; file and line are named.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = _decode(raw, path, offset).removeprefix("\ufeff")
                offset += len(raw)
                if line.strip():
                    yield f"{name}:{number}", _field_of_line(line, field, f"{path}, line {number}")
    except OSError as error:
        raise unreadable(path, error) from None


def read_parquet(path: Path, name: str, field: str) -> Iterator[tuple[str, str]]:
    """Each row is a document; needs the extra `data`.

    Raises:
        MissingExtra: pyarrow is not installed.
        DataError: the file is not Parquet, or has no text column of this name.
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
            if field not in columns:
                raise DataError(f"{path} has no column {field!r}", nearest(field, columns))
            for batch in file.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield f"{name}:{row}", text_value(value, field, f"{path}, row {row}")
    except OSError as error:
        raise unreadable(path, error) from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None


def text_value(value: object, field: str, where: str) -> str:
    """`value` if it is text.

    Raises:
        DataError: it is something else; `where` is named.
    """
    if isinstance(value, str):
        return value
    raise DataError(
        f"{where}: {field!r} is {type(value).__name__}, not text",
        "name the field that holds the text: field = …",
    )


def _field_of_line(line: str, field: str, where: str) -> str:
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
    if field not in row:
        raise DataError(f"{where}: no field {field!r}", nearest(field, row), "set it with field = …")
    return text_value(row[field], field, where)


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
