"""Token streams on disk: one array of ids per side, with the domain of each document."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from expertise.errors import DataError, counted
from expertise.lm.data.corpus import stored_documents
from expertise.lm.data.coverage import Coverage
from expertise.lm.data.documents import Document
from expertise.lm.data.encoded import Encoded, encode_documents
from expertise.lm.data.split import SPLITS
from expertise.lm.data.tokenizer import end_of_text, vocab_size
from expertise.shapes import Bool, Int

if TYPE_CHECKING:
    import tokenizers

    from expertise.lm.data.chat import Chat

STREAMS = 2
"""Part of the key of what a given tokenizer made: in version 1 marks could belong to other tokens."""

_CHARACTERS_AT_ONCE = 8_000_000
_TOKENS_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class TokenStream:
    """The documents of one side, one after the other, each preceded by the end-of-text token."""

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    """Token ids [tokens], memory-mapped, read-only: uint16, or uint32 for more than 65,536 tokens."""

    starts: Int[np.ndarray, " spans"]
    """Where each document's end-of-text token stands, int64, ascending, the first is 0."""

    domain_ids: Int[np.ndarray, " spans"]
    """Each document's domain as an index into `domains`, int64."""

    domains: tuple[str, ...]
    """The domains' names."""

    learnt: Bool[np.ndarray, " tokens"] | None = None
    """Which tokens are learnt when they are the next one; None: all. An end of text is learnt where the token
    before it is: it says that an answer is over."""

    def ends(self) -> Int[np.ndarray, " spans"]:
        """Where the token after each document would stand."""
        return np.append(self.starts[1:], len(self.tokens))[: len(self.starts)]

    def domain_of(self, positions: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """The domain id (int64) of each position; an end of text belongs to the document it precedes."""
        return self.domain_ids[np.searchsorted(self.starts, positions, side="right") - 1]

    def frequencies(self, vocab_size: int) -> Int[np.ndarray, " vocab"]:
        """How often each id below `vocab_size` occurs, read piece by piece."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start in range(0, len(self.tokens), _TOKENS_AT_ONCE):
            counts += np.bincount(self.tokens[start : start + _TOKENS_AT_ONCE], minlength=vocab_size)
        return counts


def build_streams(
    text: Path,
    tokenizer: tokenizers.Tokenizer,
    domains: tuple[str, ...],
    folder: Path,
    sides: Sequence[str] = SPLITS,
    chat: Chat | None = None,
) -> dict[str, Any]:
    """Encode stored text: `SIDE.tokens` (little-endian uint16 or uint32), `SIDE.starts` and `SIDE.domains`.

    Records have `SIDE.learnt` too, a byte per token. A document without a token to learn is left out.

    Args:
        text: a folder written by `build_text`.
        tokenizer: encodes it.
        domains: names in the order of their ids; documents of others are left out.
        folder: where the files go.
        sides: those that the text has.
        chat: what made text of conversations.

    Returns:
        dtype: the ids' type; tokens: side → domain → count, the end-of-text tokens included; notes: lines for
        the user.
    """
    dtype = "<u2" if vocab_size(tokenizer) <= 2**16 else "<u4"
    end = np.array([end_of_text(tokenizer)], dtype=dtype)
    number = {domain: i for i, domain in enumerate(domains)}
    counts = {side: dict.fromkeys(domains, 0) for side in sides}
    coverage = Coverage(tokenizer)
    num_documents = 0
    left_out: list[str] = []
    for side in sides:
        starts: list[int] = []
        owners: list[int] = []
        at = 0
        # The end of text before a document closes the one before it.
        closes = np.zeros(1, dtype=bool)
        with (folder / f"{side}.tokens").open("wb") as file, contextlib.ExitStack() as stack:
            marks: IO[bytes] | None = None
            for document, encoded in _encoded(text, side, tokenizer, domains, chat):
                num_documents += 1
                if not encoded.teaches:
                    left_out.append(document.id)
                    continue
                coverage.add(document.text, encoded.ids)
                starts.append(at)
                owners.append(number[document.domain])
                end.tofile(file)
                encoded.ids.astype(dtype).tofile(file)
                if encoded.learnt is not None and marks is None:
                    marks = stack.enter_context((folder / f"{side}.learnt").open("wb"))
                    # All that stands before the first record is plain text, and learnt.
                    (np.arange(at) > 0).tofile(marks)
                targets = encoded.targets_learnt()
                if marks is not None:
                    closes.tofile(marks)
                    targets[:-1].tofile(marks)
                closes = targets[-1:]
                at += len(encoded.ids) + 1
                counts[side][document.domain] += len(encoded.ids) + 1
        _write(folder / f"{side}.starts", starts)
        _write(folder / f"{side}.domains", owners)
        open_stream(folder, side, dtype, domains)
    return {
        "dtype": dtype,
        "tokens": counts,
        "notes": without_token(left_out, num_documents) + coverage.notes(),
    }


def open_stream(folder: Path, side: str, dtype: str, domains: tuple[str, ...]) -> TokenStream:
    """Memory-map what `build_streams` wrote.

    Raises:
        DataError: the files do not fit together, so that marks would not be those of their tokens.
    """
    tokens = _mapped(folder / f"{side}.tokens", dtype)
    starts, owners = (np.fromfile(folder / f"{side}.{name}", dtype="<i8") for name in ("starts", "domains"))
    learnt = folder / f"{side}.learnt"
    marks = _mapped(learnt, "bool") if learnt.is_file() else None
    if (
        len(starts) != len(owners)
        or (marks is not None and len(marks) != len(tokens))
        or not np.array_equal(starts[:1], [0] if len(tokens) else [])
        or not (np.diff(starts, append=len(tokens)) > 0).all()
    ):
        raise DataError(
            f"the files of {side} in the cache do not fit together: {len(tokens):,} tokens, marks for "
            f"{'all' if marks is None else f'{len(marks):,}'} of them, {len(starts):,} documents",
            f"delete {folder}: it is built again",
        )
    return TokenStream(tokens, starts.astype(np.int64), owners.astype(np.int64), domains, marks)


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    """A file's values, memory-mapped; part of a value at its end is passed over."""
    number = path.stat().st_size // np.dtype(dtype).itemsize
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r", shape=(number,)) if number else np.zeros(0, dtype=dtype)


def without_token(left_out: list[str], num_documents: int) -> list[str]:
    """A note on the documents that teach nothing, by their ids; empty: there is none."""
    if not left_out:
        return []
    return [
        f"left out: {len(left_out):,} of {counted(num_documents, 'document')} in which the tokenizer makes "
        f"no token of what is to be learnt (the first: {left_out[0]})"
    ]


def _encoded(
    text: Path, side: str, tokenizer: tokenizers.Tokenizer, domains: tuple[str, ...], chat: Chat | None
) -> Iterator[tuple[Document, Encoded]]:
    documents = (document for document in stored_documents(text, side) if document.domain in domains)
    while True:
        some: list[Document] = []
        size = 0
        for document in documents:
            some.append(document)
            size += len(document.text)
            if size >= _CHARACTERS_AT_ONCE:
                break
        if not some:
            return
        yield from zip(some, encode_documents(tokenizer, some, chat), strict=True)


def _write(path: Path, values: list[int]) -> None:
    with path.open("wb") as file:
        np.array(values, dtype="<i8").tofile(file)
