"""What every source of text gives: documents with a domain, one at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """One piece of text, never torn apart by deduplication, capping or splitting unless it is very large."""

    id: str
    """A name that is the same on every machine, such as `torch/nn/functional.py` or `train.jsonl:17`."""

    domain: str
    """The label under which it is counted and evaluated."""

    text: str
    """Its characters, as read."""

    learnt: tuple[tuple[int, int], ...] | None = None
    """Where the text that is learnt starts and ends, in characters; None: plain text, all of it is."""

    written: tuple[tuple[int, int], ...] = ()
    """What a chat template wrote, in characters: only there a control token's text is that token."""

    def num_learnt_bytes(self) -> int:
        """UTF-8 bytes of the text that is learnt."""
        if self.learnt is None:
            return len(self.text.encode())
        return sum(len(self.text[start:end].encode()) for start, end in self.learnt)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them; plain text has three."""
        values: dict[str, Any] = {"id": self.id, "domain": self.domain, "text": self.text}
        return values if self.learnt is None else {**values, "learnt": self.learnt, "written": self.written}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Document:
        """What `to_json` gave."""
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
        """The documents, in an order that depends on nothing but the text and its names.

        Raises:
            DataError: something cannot be read; the message names the file and what to do.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 of what `documents` would give, or of what determines it, in hexadecimal.

        Raises:
            DataError: something cannot be read.
        """

    def check(self) -> None:  # noqa: B027 - most sources can use all that they read
        """Refuse a source of which too much could not be used, after its documents have been read.

        Raises:
            DataError: how much of it, and the first that could not.
        """

    def num_bytes(self) -> int | None:
        """How large it is as it is stored; None: that is not known without reading it."""
        return None

    def notes(self) -> list[str]:
        """What a user may want to know after the documents have been read: one line each."""
        return []


def normalise(text: str) -> str:
    r"""`text` with `\n` line ends, without a byte order mark, and encodable as UTF-8."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON may hold halves of surrogate pairs: whole pairs become their character, lone halves U+FFFD.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
