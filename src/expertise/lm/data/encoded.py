"""Documents as tokens, with what is learnt of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expertise.lm.data.documents import Document
from expertise.lm.data.tokenizer import encode
from expertise.shapes import Bool, Int

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class Encoded:
    """One document, without an end of text."""

    ids: Int[np.ndarray, " tokens"]
    """Token ids, int64."""
    learnt: Bool[np.ndarray, " tokens"] | None
    """Which of them are learnt; None: plain text, all are."""

    @property
    def teaches(self) -> bool:
        """Whether any of its tokens is learnt: a document without one is left out of streams and windows.

        A tokenizer may have no token for a whole text, or for all of an answer.
        """
        return bool(len(self.ids) if self.learnt is None else self.learnt.any())

    def targets_learnt(self) -> Bool[np.ndarray, " longer"]:
        """A mark for each token and for the end of text after it, which is learnt where the last token is."""
        learnt = np.ones(len(self.ids), dtype=bool) if self.learnt is None else self.learnt
        return np.append(learnt, learnt[-1:] if len(learnt) else self.learnt is None)


def encode_documents(tokenizer: tokenizers.Tokenizer, documents: Sequence[Document]) -> list[Encoded]:
    """Encode documents; a token never reaches across the border between what is learnt and what is not.

    So a prompt has the tokens that it will have when the model is asked, and the bytes that are learnt do not
    depend on the tokenizer. A chat template's marker is the tokenizer's own token of that name where it has
    one, else its text is encoded by itself; a marker that a message spells out is text.

    Args:
        tokenizer: from `load_tokenizer` or `train_tokenizer`.
        documents: any number, in memory at once.
    """
    pieces = [list(_pieces(document)) for document in documents]
    texts = iter(encode(tokenizer, [text for of_one in pieces for text, _, _ in of_one]))
    return [
        _joined(tokenizer, document, of_one, texts)
        for document, of_one in zip(documents, pieces, strict=True)
    ]


def _pieces(document: Document) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether it is learnt, whether it is a marker), in order."""
    if document.learnt is None:
        yield document.text, True, False
        return
    borders = {0, len(document.text)}
    borders.update(place for span in (*document.learnt, *document.markers) for place in span)
    starts = sorted(borders)
    for start, end in itertools.pairwise(starts):
        learnt = any(a <= start and end <= b for a, b in document.learnt)
        yield document.text[start:end], learnt, (start, end) in document.markers


def _joined(
    tokenizer: tokenizers.Tokenizer,
    document: Document,
    pieces: list[tuple[str, bool, bool]],
    encoded: Iterator[Int[np.ndarray, " tokens"]],
) -> Encoded:
    if document.learnt is None:
        return Encoded(next(encoded), None)
    ids, learnt = [], []
    for text, is_learnt, is_marker in pieces:
        own = tokenizer.token_to_id(text) if is_marker else None
        plain = next(encoded)
        ids.append(plain if own is None else np.array([own], dtype=np.int64))
        learnt.append(np.full(len(ids[-1]), is_learnt))
    return Encoded(np.concatenate(ids), np.concatenate(learnt))
