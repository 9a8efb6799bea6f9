"""A data set on the Hugging Face hub as a source; needs the extra `data` and, the first time, a network."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

from expertise.errors import DataError, MissingExtra, nearest
from expertise.lm.data.config import SourceTable
from expertise.lm.data.documents import Document, Source
from expertise.lm.data.readers import text_value


class HubSource(Source):
    """The rows of one split of a hub data set, each a document.

    Args:
        table: hub id, domain, field and split.
    """

    def __init__(self, table: SourceTable) -> None:
        super().__init__(table.domain)
        self.hub, self.field, self.split = table.hub, table.field, table.split

    def documents(self) -> Iterator[Document]:
        """One document per row.

        Raises:
            MissingExtra: `datasets` is not installed.
            DataError: the data set cannot be loaded, or has no text column of this name.
        """
        rows = self._call("load_dataset", split=self.split)
        if self.field not in rows.column_names:
            raise DataError(
                f"{self.hub} has no column {self.field!r}", nearest(self.field, rows.column_names)
            )
        for number, row in enumerate(rows.select_columns([self.field])):
            text = text_value(row[self.field], self.field, f"{self.hub}, row {number}")
            yield Document(f"{self.hub}/{self.split}:{number}", self.domain, text)

    def digest(self) -> str:
        """SHA-256 of the data set's name, its version on the hub, and what is read of it."""
        builder = self._call("load_dataset_builder")
        listed = "\n".join([self.hub, str(builder.hash), str(builder.config.name), self.split, self.field])
        return hashlib.sha256(listed.encode()).hexdigest()

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
