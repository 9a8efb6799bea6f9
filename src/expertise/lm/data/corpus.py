"""Build divided text from sources: normalise, deduplicate, cap, divide, store.

Documents are streamed: only hashes of paragraphs and one short record per document stay in memory; the
text itself is kept in a temporary file until each document's split is known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from expertise.errors import DataError, counted
from expertise.lm.data.documents import Document, Source, normalise
from expertise.lm.data.left_out import size
from expertise.lm.data.split import (
    SECTIONS,
    SPLITS,
    assign,
    assign_runs,
    needs_sections,
    nice_end,
    order_key,
    section_ends,
)

_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")
_SHORTEST_DUPLICATE = 60
_SPANS = ("learnt", "written")


@dataclass(frozen=True)
class _Piece:
    """A document, or a section of one, in the temporary file."""

    id: str
    start: int
    size: int
    spans: int = 0
    """Bytes of JSON after the text: the learnt ranges of a record."""


class Deduplicator:
    """Drops paragraphs (between blank lines, 60 bytes or more) that occurred before, in any document.

    Records are compared as a whole: a conversation without one of its paragraphs would be another.

    Args:
        held_out: deduplicator of text that must not be trained on: its paragraphs are dropped too.
        drops: False: drop nothing, only remember what was seen.
    """

    def __init__(self, held_out: Deduplicator | None = None, *, drops: bool = True) -> None:
        self._seen: set[bytes] = set()
        self._dropped = {"paragraph": (0, 0), "record": (0, 0)}
        self._held_out = held_out._seen if held_out is not None else frozenset()
        self._drops = drops
        self.num_held_out = 0
        """Number of paragraphs and records that the held-out text has too."""

    def __call__(self, text: str) -> str:
        """Return `text` without paragraphs that were seen; the rest is unchanged, byte for byte."""
        parts = _BLANK_LINES.split(text)
        kept: list[str] = []
        for i in range(0, len(parts), 2):
            raw = parts[i].encode()
            if len(raw) >= _SHORTEST_DUPLICATE:
                key = hashlib.blake2b(raw, digest_size=16).digest()
                if self._is_held_out(key):
                    continue
                if key in self._seen and self._drops:
                    self._drop("paragraph", len(raw))
                    continue
                self._seen.add(key)
            kept.extend(parts[i : i + 2])
        return "".join(kept)

    def is_known(self, record: Document) -> bool:
        """Return True if a record with the same text and the same learnt and written ranges was seen."""
        parts = [record.text, record.learnt, *([record.written] if record.written else [])]
        key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
        if self._is_held_out(key):
            return True
        known = key in self._seen and self._drops
        self._seen.add(key)
        if known:
            self._drop("record", len(record.text.encode()))
        return known

    def notes(self) -> list[str]:
        """Describe how much was seen before, one line for paragraphs and one for records."""
        return [
            f"left out: {counted(number, what)} ({size(total)}) met before (data.deduplicate)"
            for what, (number, total) in self._dropped.items()
            if number
        ]

    def _drop(self, what: str, num_bytes: int) -> None:
        number, total = self._dropped[what]
        self._dropped[what] = number + 1, total + num_bytes

    def _is_held_out(self, key: bytes) -> bool:
        found = key in self._held_out
        self.num_held_out += found
        return found


def build_text(
    sources: list[Source], cap_bytes: int, deduplicate: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, documents of all domains in hash order.

    A record (a document with learnt ranges) stays as it is: it is never cut, neither at a cap nor
    to be divided, and dropped only if all of it was seen before.

    Args:
        sources: sources of the text, in order; several may share a domain.
        cap_bytes: bytes of each domain that are kept; 0: all. The document that crosses it is cut.
        deduplicate: drop repeated paragraphs, or repeated records.
        folder: an empty folder.
        say: called with each line of progress.

    Returns:
        domains: their names; bytes and documents: split → domain → count; notes: lines for the user.

    Raises:
        DataError: a source cannot be read, or a domain has too little text to be divided.
    """
    with tempfile.TemporaryFile(dir=folder) as spool:
        pieces, notes = _gather(sources, cap_bytes, Deduplicator() if deduplicate else None, spool, say)
        sides: dict[str, list[tuple[str, _Piece]]] = {side: [] for side in SPLITS}
        for domain, of_domain in pieces.items():
            for side, piece in _divide(domain, of_domain, spool):
                sides[side].append((domain, piece))
        return {**_store(sides, list(pieces), spool, folder), "notes": notes}


def build_whole(
    held_out: Mapping[str, list[Source]],
    training: list[Source],
    cap_bytes: int,
    deduplicate: bool,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write each split's text from sources of its own; nothing is divided.

    Held-out text is kept whole: neither the cap nor deduplication removes any of it.

    Args:
        held_out: split (`validation`, or any other name) → its sources.
        training: sources of `train`; empty: there is no such split.
        cap_bytes: bytes of each domain of the training text that are kept; 0: all.
        deduplicate: drop training text that occurred before, there or in the held-out text.
        folder: an empty folder.
        say: called with each line of progress.

    Returns:
        The same as `build_text`, for these splits.

    Raises:
        DataError: a source cannot be read, or a domain has no text.
    """
    notes: list[str] = []
    sides: dict[str, list[tuple[str, _Piece]]] = {}
    seen = Deduplicator(drops=False) if deduplicate and training else None
    fresh = Deduplicator(seen) if deduplicate else None
    with tempfile.TemporaryFile(dir=folder) as spool:
        # The held-out text is read first, so that none of it is trained on.
        read = [(side, sources, 0, seen) for side, sources in held_out.items()]
        read += [("train", training, cap_bytes, fresh)] if training else []
        for side, sources, cap, clean in read:
            pieces, found = _gather(sources, cap, clean, spool, say)
            sides[side] = [(domain, piece) for domain, of_domain in pieces.items() for piece in of_domain]
            notes += found
        if fresh is not None and fresh.num_held_out:
            notes.append(
                f"{fresh.num_held_out:,} paragraphs or records are left out of the training text: "
                "data.validation has them"
            )
        ordered = {side: sides[side] for side in reversed(sides)}  # training text and its domains come first
        domains = dict.fromkeys(domain for chosen in ordered.values() for domain, _ in chosen)
        return {**_store(ordered, list(domains), spool, folder), "notes": notes}


def _store(
    sides: Mapping[str, list[tuple[str, _Piece]]], domains: list[str], spool: IO[bytes], folder: Path
) -> dict[str, Any]:
    """Write each split's documents, in hash order; return the domains, and the counts of each split."""
    num_bytes = {side: dict.fromkeys(domains, 0) for side in sides}
    num_documents = {side: dict.fromkeys(domains, 0) for side in sides}
    for side, chosen in sides.items():
        in_order = sorted(chosen, key=lambda item: (order_key(item[0], item[1].id), item[1].start))
        with (folder / f"{side}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            for domain, piece in in_order:
                row = {"id": piece.id, "domain": domain, "text": _read(spool, piece).decode()}
                row |= _spans(spool, piece)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                num_bytes[side][domain] += piece.size
                num_documents[side][domain] += 1
    return {"domains": domains, "bytes": num_bytes, "documents": num_documents}


def stored_documents(folder: Path, side: str) -> Iterator[Document]:
    """Yield the documents of a split that `build_text` or `build_whole` stored, in stored order."""
    with (folder / f"{side}.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document.from_json(json.loads(line))


def _gather(
    sources: list[Source],
    cap: int,
    clean: Deduplicator | None,
    spool: IO[bytes],
    say: Callable[[str], None],
) -> tuple[dict[str, list[_Piece]], list[str]]:
    pieces: dict[str, list[_Piece]] = {}
    total: dict[str, int] = {}
    more: set[str] = set()
    num_blank = 0
    notes: list[str] = []
    for source in sources:
        domain = source.domain
        kept = pieces.setdefault(domain, [])
        have = total.setdefault(domain, 0)
        # A small cap must not hide whether an optional domain is large enough to be used.
        limit = max(cap, source.minimum_bytes) if cap else 0
        if limit and have >= limit:
            more.add(domain)
            continue
        say(f"reading {domain}")
        # Closing the generator at the cap closes the file it reads.
        with contextlib.closing(_documents(source)) as documents:
            for document in documents:
                if limit and have >= limit:
                    more.add(domain)
                    break
                piece = _kept(document, clean, spool)
                num_blank += not document.text.removeprefix("\ufeff").strip()
                if piece is not None:
                    kept.append(piece)
                    have += piece.size
        source.check()
        total[domain] = have
        notes += source.notes()
    for source in sources:
        domain = source.domain
        if domain in pieces and total[domain] < source.minimum_bytes:
            del pieces[domain]
            notes.append(f"left out the domain {domain}: {size(total[domain])} is too little")
        elif domain in pieces and not pieces[domain]:
            raise DataError(
                f"the domain {domain!r} has no text left",
                "its files are empty, or another domain or data.validation holds the same paragraphs "
                "(data.deduplicate = false)",
            )
    if num_blank:
        notes.append(f"left out: {counted(num_blank, 'document')} of nothing but white space")
    if clean is not None:
        notes += clean.notes()
    if cap:
        pieces = {domain: _capped(kept, cap, spool) for domain, kept in pieces.items()}
        beyond = [domain for domain in pieces if domain in more or total[domain] > cap]
        notes += [_cap_note(domain, pieces[domain], cap, sources) for domain in beyond]
    return pieces, notes


def _cap_note(domain: str, kept: list[_Piece], cap: int, sources: list[Source]) -> str:
    sizes = [source.num_bytes() for source in sources if source.domain == domain]
    stored = sum(number or 0 for number in sizes)
    kept_bytes = size(sum(piece.size for piece in kept))
    return (
        f"left out of {domain}: all beyond data.cap_bytes ({cap:,}); "
        f"{kept_bytes} in {counted(len(kept), 'document')} are kept"
        + (f", its files have {size(stored)}" if None not in sizes else "")
    )


def _kept(document: Document, clean: Deduplicator | None, spool: IO[bytes]) -> _Piece | None:
    """Write a document to the temporary file, unless nothing in it is new."""
    if document.learnt is not None:
        if clean is not None and clean.is_known(document):
            return None
        spans = {key: value for key, value in document.to_json().items() if key in _SPANS}
        start, size = spool.tell(), spool.write(document.text.encode())
        return _Piece(document.id, start, size, spool.write(json.dumps(spans).encode()))
    text = normalise(document.text)
    if clean is not None:
        text = clean(text)
    return _Piece(document.id, spool.tell(), spool.write(text.encode())) if text.strip() else None


def _documents(source: Source) -> Generator[Document, None, None]:
    yield from source.documents()


def _capped(pieces: list[_Piece], cap: int, spool: IO[bytes]) -> list[_Piece]:
    """Return the first pieces up to `cap` bytes; the one that crosses is cut, at a blank line if one is near.

    A record that crosses is left out.
    """
    kept: list[_Piece] = []
    left = cap
    for piece in pieces:
        if piece.size > left and piece.spans:
            break
        if piece.size > left:
            end = nice_end(_read(spool, piece), left - left // 4, left, left)
            if end > 0:
                kept.append(replace(piece, size=end))
            break
        kept.append(piece)
        left -= piece.size
    return kept


def _divide(domain: str, pieces: list[_Piece], spool: IO[bytes]) -> Iterator[tuple[str, _Piece]]:
    pieces = sorted(pieces, key=lambda piece: (order_key(domain, piece.id), piece.start))
    sides = assign([piece.size for piece in pieces])
    if needs_sections([piece.size for piece in pieces], sides):
        total = sum(piece.size for piece in pieces)
        target = max(1, total // SECTIONS)
        records = any(piece.spans for piece in pieces)
        pieces = [part for piece in pieces for part in _sections(piece, target, spool)]
        if len(pieces) < len(SPLITS):
            has = counted(len(pieces), "record") if records else counted(total, "byte")
            raise DataError(
                f"the domain {domain!r} has only {has}, too few to give train, validation and test",
                "add text to its source",
            )
        sides = assign_runs([piece.size for piece in pieces])
    return ((SPLITS[side], piece) for side, piece in zip(sides, pieces, strict=True))


def _sections(piece: _Piece, target: int, spool: IO[bytes]) -> list[_Piece]:
    whole = piece.spans or piece.size <= target
    ends = [piece.size] if whole else section_ends(_read(spool, piece), target)
    if len(ends) == 1:
        return [piece]
    starts = [0, *ends[:-1]]
    return [
        _Piece(f"{piece.id}#{number}", piece.start + start, end - start)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def _read(spool: IO[bytes], piece: _Piece) -> bytes:
    spool.seek(piece.start)
    return spool.read(piece.size)


def _spans(spool: IO[bytes], piece: _Piece) -> dict[str, Any]:
    """Read the learnt ranges of a record; empty for plain text."""
    if not piece.spans:
        return {}
    spool.seek(piece.start + piece.size)
    found: dict[str, Any] = json.loads(spool.read(piece.spans))
    return found
