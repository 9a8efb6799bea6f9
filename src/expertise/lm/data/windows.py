"""What bits per byte are computed on: the same bytes whatever the tokenizer, each token predicted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from expertise.lm.data.batches import IGNORED, PADDING
from expertise.lm.data.coverage import Coverage
from expertise.lm.data.documents import Document
from expertise.lm.data.encoded import encode_documents
from expertise.lm.data.held_out import Readable
from expertise.lm.data.streams import without_token
from expertise.shapes import Bool, Int


@dataclass(frozen=True)
class EvaluationWindows:
    """Documents of one domain, cut into windows; all int64.

    With `nll` the sum of the negative log-likelihoods (nats) of all targets that are not ignored,
    `nll / ln 2 / num_bytes` is bits per byte.
    """

    tokens: Int[Tensor, "windows time"]
    """Ids that go in; windows are padded with the end of text."""

    targets: Int[Tensor, "windows time"]
    """The id that follows each of them (an end of text counts too), or `IGNORED` where it does not count."""

    num_bytes: int
    """UTF-8 bytes of the text that counts: all of it, or what is learnt of records."""

    ids: Int[Tensor, " ids"]
    """The same tokens in one row, the first end of text included."""

    num_documents: int = 0
    """How many documents the text is of, one that was cut included."""

    documents: Int[Tensor, "windows time"] | None = None
    """The number of each token's document in its window, or `PADDING`; None: attention crosses documents."""

    notes: tuple[str, ...] = ()
    """What the tokenizer has no tokens for, a line each."""


def evaluation_windows(
    prepared: Readable, split: str, domain: str, max_bytes: int, context: int
) -> EvaluationWindows:
    """Cut a domain's documents into windows in which every token but the very first is a target once.

    The documents come in stored order, each after an end of text. The one that reaches `max_bytes` is cut
    there, on a character boundary; a record that does is the last one, and whole. Of records the targets
    that are not learnt are ignored. So the bytes do not depend on the tokenizer. Where training packs whole
    documents, windows do too: what is longer than the context goes on in pieces, so that no byte is lost.

    Args:
        prepared: text and tokenizer.
        split: `validation` or `test` (or `train`, or `all`).
        domain: one of `prepared.domains`.
        max_bytes: how much text that counts at most; 0 takes all.
        context: tokens per window.
    """
    documents = list(_first_bytes(prepared.records(split, domain), max_bytes))
    end = np.array([prepared.end_of_text], dtype=np.int64)
    ids: list[Int[np.ndarray, " _"]] = []
    counted: list[Bool[np.ndarray, " _"]] = []
    num_bytes = 0
    coverage, left_out = Coverage(prepared.tokenizer), list[str]()
    found = encode_documents(prepared.tokenizer, documents, prepared.chat)
    for document, encoded in zip(documents, found, strict=True):
        # As in training; bytes for which there is no token would count as foretold at no cost.
        if not encoded.teaches:
            left_out.append(document.id)
        else:
            coverage.add(document.text, encoded.ids)
            ids += [end, encoded.ids]
            counted.append(encoded.targets_learnt())
            num_bytes += document.num_learnt_bytes()
    flat = np.concatenate(ids or [end])
    notes = (*without_token(left_out, len(documents)), *coverage.notes())
    if prepared.packed:
        rows = _rows(ids, counted, prepared.end_of_text, context)
        packed = _packed(rows, flat, num_bytes, prepared.end_of_text, context)
        return replace(packed, num_documents=len(documents), notes=notes)
    # The last end of text has no place in a stream: nothing follows.
    targets = np.where(np.concatenate([*counted, [False]])[: len(flat) - 1], flat[1:], IGNORED)
    num_windows = -(-len(targets) // context)
    tokens = np.full(num_windows * context, prepared.end_of_text, dtype=np.int64)
    padded = np.full(num_windows * context, IGNORED, dtype=np.int64)
    tokens[: len(targets)] = flat[:-1]
    padded[: len(targets)] = targets
    return EvaluationWindows(
        tokens=torch.from_numpy(tokens).view(num_windows, context),
        targets=torch.from_numpy(padded).view(num_windows, context),
        num_bytes=num_bytes,
        ids=torch.from_numpy(flat),
        num_documents=len(documents),
        notes=notes,
    )


_Piece = tuple[np.ndarray, np.ndarray]
"""Tokens and targets of a document, or of a part of one that is too long."""


def _rows(
    ids: list[Int[np.ndarray, " _"]], counted: list[Bool[np.ndarray, " _"]], end: int, context: int
) -> list[list[_Piece]]:
    """The pieces of each window: documents in their order, a new window where one does not fit."""
    rows: list[list[_Piece]] = []
    left = 0
    for before, text, counts in zip(ids[::2], ids[1::2], counted, strict=True):
        tokens = np.concatenate([before, text])
        targets = np.where(counts, np.append(text, end), IGNORED)
        for at in range(0, len(tokens), context):
            piece = tokens[at : at + context], targets[at : at + context]
            if len(piece[0]) > left:
                rows.append([])
                left = context
            rows[-1].append(piece)
            left -= len(piece[0])
    return rows


def _packed(
    rows: list[list[_Piece]], flat: Int[np.ndarray, " ids"], num_bytes: int, end: int, context: int
) -> EvaluationWindows:
    shape = (len(rows), context)
    table = [np.full(shape, fill, dtype=np.int64) for fill in (end, IGNORED, PADDING)]
    for row, pieces in enumerate(rows):
        at = 0
        for number, (tokens, targets) in enumerate(pieces):
            place = np.s_[row, at : at + len(tokens)]
            table[0][place], table[1][place], table[2][place] = tokens, targets, number
            at += len(tokens)
    return EvaluationWindows(
        tokens=torch.from_numpy(table[0]),
        targets=torch.from_numpy(table[1]),
        num_bytes=num_bytes,
        ids=torch.from_numpy(flat),
        documents=torch.from_numpy(table[2]),
    )


def _first_bytes(documents: Iterator[Document], max_bytes: int) -> Iterator[Document]:
    left = max_bytes
    for document in documents:
        size = document.num_learnt_bytes()
        if max_bytes and size >= left:
            if document.learnt is not None:
                yield document
                return
            part = document.text.encode()[:left].decode(errors="ignore")
            if part:
                yield replace(document, text=part)
            return
        yield document
        left -= size
