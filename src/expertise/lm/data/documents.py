"""Documents with a domain, and the base class of the sources that yield them."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """One piece of text, never cut by deduplication, capping or splitting unless it is very large."""

    id: str
    """A name that is the same on every machine, such as `torch/nn/functional.py` or `train.jsonl:17`."""

    domain: str
    """The label for its counts and its evaluation."""

    text: str
    """The characters, as read."""

    learnt: tuple[tuple[int, int], ...] | None = None
    """Ranges (start, end) of the text that is learnt, in characters; None: all of it (plain text)."""

    written: tuple[tuple[int, int], ...] = ()
    """Ranges that a chat template wrote, in characters: only there are control tokens encoded as such."""

    def num_learnt_bytes(self) -> int:
        """Return the number of UTF-8 bytes that are learnt."""
        if self.learnt is None:
            return len(self.text.encode())
        return sum(len(self.text[start:end].encode()) for start, end in self.learnt)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON; plain text has three."""
        values: dict[str, Any] = {"id": self.id, "domain": self.domain, "text": self.text}
        return values if self.learnt is None else {**values, "learnt": self.learnt, "written": self.written}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Document:
        """Build a document from the result of `to_json`."""
        spans = {key: tuple((a, b) for a, b in values[key]) for key in ("learnt", "written") if key in values}
        return cls(values["id"], values["domain"], values["text"], **spans)


class Source(abc.ABC):
    """Text of one domain.

    Args:
        domain: the label of all its documents.
        minimum_bytes: a domain that ends up smaller is left out with a note; 0 makes an empty one an error.
    """

    def __init__(self, domain: str, minimum_bytes: int = 0) -> None:
        self.domain = domain
        self.minimum_bytes = minimum_bytes

    @abc.abstractmethod
    def documents(self) -> Iterator[Document]:
        """Yield the documents, in an order that depends only on the text and its names.

        Raises:
            DataError: something cannot be read; the message names the file and says what to do.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """Return the SHA-256 of the documents, or of everything that determines them, in hexadecimal.

        Raises:
            DataError: something cannot be read.
        """

    def check(self) -> None:  # noqa: B027 - most sources can use all rows that they read
        """Refuse a source with too many unusable rows, after its documents have been read.

        Raises:
            DataError: too many rows are unusable; the message says how many and names the first.
        """

    def num_bytes(self) -> int | None:
        """Return the size of the source as stored; None: unknown without reading it."""
        return None

    def notes(self) -> list[str]:
        """Return notes for the user, one line each, after the documents have been read."""
        return []


def normalise(text: str) -> str:
    r"""Return `text` with `
    ` line ends, without a byte order mark, and encodable as UTF-8."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON may hold halves of surrogate pairs: whole pairs become their character, single halves U+FFFD.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
