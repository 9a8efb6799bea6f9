"""A data set on the Hugging Face hub as a source; needs the extra `data` and, the first time, a network."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

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
        """One document per row.

        Raises:
            MissingExtra: `datasets` is not installed.
            DataError: the data set cannot be loaded, lacks a column, or holds something else in it.
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
        """SHA-256 of the data set's name, its version on the hub, and what is read of it."""
        builder = self._call("load_dataset_builder")
        listed = "\n".join([self.hub, str(builder.hash), str(builder.config.name), self.split, *self.fields])
        return hashlib.sha256(listed.encode()).hexdigest()

    def check(self) -> None:
        """Refuse a data set with too many rows that cannot be used."""
        self.bad.check()

    def notes(self) -> list[str]:
        """How many rows could not be used, and what was passed over in the others."""
        return self.bad.notes() + self.kind.notes()

    def _call(self, function: str, **options: str) -> Any:
        try:
            load: Callable[..., Any] = getattr(importlib.import_module("datasets"), function)
        except ImportError:
            raise MissingExtra("data", f"the hub data set {self.hub!r}") from None
        name, _, configuration = self.hub.partition(":")
        try:
            return load(name, configuration or None, **options)
        except Exception as error:  # the library raises many kinds, some of them its own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"cannot load {self.hub!r} from the hub: {reason}", "check its name, split and your network"
            ) from None
