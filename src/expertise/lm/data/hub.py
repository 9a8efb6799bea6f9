"""Data sets on the Hugging Face hub as sources; needs the extra `data` and, the first time, a network."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import override

from expertise.errors import DataError, MissingExtra
from expertise.lm.data.config import SourceTable
from expertise.lm.data.documents import Document, Source
from expertise.lm.data.kinds import Kind
from expertise.lm.data.left_out import BadRows
from expertise.lm.data.readers import Row, require_columns


class HubSource(Source):
    """The rows of one split of a hub data set, each a document.

    Args:
        table: hub id, domain, fields and split.
        kind: makes documents of the rows.
    """

    def __init__(self, table: SourceTable, kind: Kind) -> None:
        super().__init__(table.domain)
        self.hub, self.split, self.table, self.kind = table.hub, table.split, table, kind
        self.fields = kind.fields(table)
        self.bad = BadRows(kind.data, table.domain)

    def documents(self) -> Iterator[Document]:
        """Yield one document per row.

        Raises:
            MissingExtra: `datasets` is not installed.
            DataError: the data set cannot be loaded, lacks a column, or has a column of another type.
        """
        rows = self._call("load_dataset", split=self.split)
        require_columns(rows.column_names, self.fields, self.hub)
        others = (field for field in self.kind.optional_fields(self.table) if field in rows.column_names)
        found = (
            Row(f"{self.hub}/{self.split}:{number}", f"{self.hub}, row {number}", values)
            for number, values in enumerate(rows.select_columns([*self.fields, *others]))
        )
        yield from self.bad.documents(found, lambda row: self.kind.document(row, self.table))

    def digest(self) -> str:
        """Return the SHA-256 of the data set's name, its version on the hub, and what is read of it."""
        builder = self._call("load_dataset_builder")
        listed = "\n".join([self.hub, str(builder.hash), str(builder.config.name), self.split, *self.fields])
        return hashlib.sha256(listed.encode()).hexdigest()

    @override
    def check(self) -> None:
        self.bad.check()

    @override
    def notes(self) -> list[str]:
        return self.bad.notes() + self.kind.notes()

    def _call(self, function: str, **options: str) -> Any:
        try:
            load: Callable[..., Any] = getattr(importlib.import_module("datasets"), function)
        except ImportError:
            raise MissingExtra("data", f"the hub data set {self.hub!r}") from None
        name, _, configuration = self.hub.partition(":")
        try:
            return load(name, configuration or None, **options)
        except Exception as error:  # the library raises many kinds of errors, some of them its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"cannot load {self.hub!r} from the hub: {reason}", "check its name, split and your network"
            ) from None
