"""Text that is left out between a source and a batch: each kind of it is one note that says how much."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from expertise.errors import DataError, counted
from expertise.lm.data.config import DataConfig
from expertise.lm.data.documents import Document
from expertise.lm.data.readers import Row

_SKIP = 'data.on_bad = "skip" leaves out what cannot be used, and counts it'


def size(num_bytes: int) -> str:
    """An amount of text: "12,345 bytes", "1.23 MB"."""
    return counted(num_bytes, "byte") if num_bytes < 100_000 else f"{num_bytes / 1e6:,.2f} MB"


class PassedOver:
    """Counts what stands in a folder and is not read, by kind."""

    HIDDEN = ("hidden file",)
    HIDDEN_FOLDER = ("hidden folder",)
    REPEATED = ("link to a folder that is read anyway", "links to folders that are read anyway")
    ABOVE = ("link to a folder that holds this one", "links to folders that hold this one")
    BROKEN = ("link that leads nowhere", "links that lead nowhere")
    SPECIAL = ("device, pipe or socket", "devices, pipes or sockets")
    BINARY = ("binary file",)
    TEXT = ("plain text file",)
    EMPTY = ("empty file",)

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], tuple[int, int]] = {}

    def add(self, kind: tuple[str, ...], num_bytes: int = 0) -> None:
        """Count one more of a kind, a singular with a plural where that does not end in s."""
        number, total = self._found.get(kind, (0, 0))
        self._found[kind] = number + 1, total + num_bytes

    def in_words(self) -> str:
        """A list such as "2 hidden files, 1 binary file (4 bytes)"; empty: there is nothing."""
        return ", ".join(
            counted(number, *kind) + (f" ({size(total)})" if total else "")
            for kind, (number, total) in self._found.items()
        )


class BadRows:
    """Rows of one source that cannot be used: the first stops everything, or all are left out and counted.

    Args:
        data: says which of the two, and how many there may be.
        domain: the source's, for messages.
        noun: what a row is called there.
        alone: whether there is only one, so that it cannot be left out.
    """

    def __init__(self, data: DataConfig, domain: str, noun: str = "row", alone: bool = False) -> None:
        self._skip, self._share = data.on_bad == "skip", data.bad_share
        self._domain, self._noun, self._alone = domain, noun, alone
        self._first: DataError | None = None
        self._num_rows = self._num_bad = 0

    def documents(
        self, rows: Iterable[Row | DataError], document: Callable[[Row], Document]
    ) -> Iterator[Document]:
        """The documents of the rows that can be used.

        Args:
            rows: from a reader; an error stands for a row that it could not read.
            document: makes one of a row.

        Raises:
            DataError: a row cannot be used, and is not to be skipped.
        """
        self._first, self._num_rows, self._num_bad = None, 0, 0
        for row in rows:
            self._num_rows += 1
            try:
                if isinstance(row, DataError):
                    raise row
                found = document(row)
            except DataError as error:
                if not self._skip:
                    hints = error.hints if self._alone else (*error.hints, _SKIP)
                    raise DataError(error.message, *hints) from None
                self._num_bad += 1
                self._first = self._first or error
                continue
            yield found
        self.check()

    def check(self) -> None:
        """Refuse a source of which too much is bad.

        Raises:
            DataError: more than `data.bad_share` of the rows that were read; the first one is named.
        """
        if self._first is not None and self._num_bad > self._share * self._num_rows:
            raise DataError(
                f"{self._counts()} cannot be used, more than {100 * self._share:g} %; "
                f"the first: {self._first.message}",
                *self._first.hints[:2],
                "mend them, or raise data.bad_share if they may be missing",
            )

    def notes(self) -> list[str]:
        """How many were left out, with the first of them."""
        if self._first is None:
            return []
        return [f"left out: {self._counts()} that cannot be used; the first: {self._first.message}"]

    def _counts(self) -> str:
        return f"{self._num_bad:,} of {counted(self._num_rows, self._noun)} of {self._domain}"
