"""From sources to divided text: normalise, deduplicate, cap, divide, store.

Documents stream through: only hashes of paragraphs and one short record per document stay in memory; the
text itself waits in one temporary file until it is known which side each document goes to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Generator, Iterator
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
_SPANS = ("learnt", "markers")


@dataclass(frozen=True)
class _Piece:
    """A document, or a section of one, in the temporary file."""

    id: str
    start: int
    size: int
    spans: int = 0
    """Bytes of JSON after the text: where it is learnt, for a record."""


class Deduplicator:
    """Drops paragraphs (between blank lines, 60 bytes or more) that were met before, in any document.

    Of records it knows whole ones: a conversation without one of its paragraphs would be another.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._dropped = {"paragraph": (0, 0), "record": (0, 0)}

    def __call__(self, text: str) -> str:
        """`text` without paragraphs already seen; what is left is unchanged, byte for byte."""
        parts = _BLANK_LINES.split(text)
        kept: list[str] = []
        for i in range(0, len(parts), 2):
            raw = parts[i].encode()
            if len(raw) >= _SHORTEST_DUPLICATE:
                key = hashlib.blake2b(raw, digest_size=16).digest()
                if key in self._seen:
                    self._drop("paragraph", len(raw))
                    continue
                self._seen.add(key)
            kept.extend(parts[i : i + 2])
        return "".join(kept)

    def is_known(self, record: Document) -> bool:
        """Whether a record with the same text, learnt in the same places, was met before."""
        key = hashlib.blake2b(json.dumps([record.text, record.learnt]).encode(), digest_size=16).digest()
        known = key in self._seen
        self._seen.add(key)
        if known:
            self._drop("record", len(record.text.encode()))
        return known

    def notes(self) -> list[str]:
        """How much was met before, a line for paragraphs and one for records."""
        return [
            f"left out: {counted(number, what)} ({size(total)}) met before (data.deduplicate)"
            for what, (number, total) in self._dropped.items()
            if number
        ]

    def _drop(self, what: str, num_bytes: int) -> None:
        number, total = self._dropped[what]
        self._dropped[what] = number + 1, total + num_bytes


def build_text(
    sources: list[Source], cap_bytes: int, deduplicate: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, documents of all domains in hash order.

    A record (a document with something to learn in it) stays as it is: it is never cut, neither at a cap nor
    to be divided, and dropped only when all of it was met before.

    Args:
        sources: where the text comes from, in order; several may share a domain.
        cap_bytes: bytes of each domain that are kept; 0 keeps all. The document that crosses it is cut.
        deduplicate: whether repeated paragraphs, or repeated records, are dropped.
        folder: an empty folder.
        say: told what is happening, a line at a time.

    Returns:
        domains: their names; bytes and documents: side → domain → count; notes: lines for the user.

    Raises:
        DataError: a source cannot be read, or a domain has too little text to be divided.
    """
    with tempfile.TemporaryFile(dir=folder) as spool:
        pieces, notes = _gather(sources, cap_bytes, deduplicate, spool, say)
        sides: dict[str, list[tuple[bytes, str, _Piece]]] = {side: [] for side in SPLITS}
        for domain, of_domain in pieces.items():
            for side, piece in _divide(domain, of_domain, spool):
                sides[side].append((order_key(domain, piece.id), domain, piece))
        num_bytes = {side: dict.fromkeys(pieces, 0) for side in SPLITS}
        num_documents = {side: dict.fromkeys(pieces, 0) for side in SPLITS}
        for side, chosen in sides.items():
            chosen.sort(key=lambda item: (item[0], item[2].start))
            with (folder / f"{side}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                for _, domain, piece in chosen:
                    row = {"id": piece.id, "domain": domain, "text": _read(spool, piece).decode()}
                    row |= _spans(spool, piece)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    num_bytes[side][domain] += piece.size
                    num_documents[side][domain] += 1
    return {"domains": list(pieces), "bytes": num_bytes, "documents": num_documents, "notes": notes}


def stored_documents(folder: Path, side: str) -> Iterator[Document]:
    """What `build_text` stored for one side, in stored order."""
    with (folder / f"{side}.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document.from_json(json.loads(line))


def _gather(
    sources: list[Source], cap: int, deduplicate: bool, spool: IO[bytes], say: Callable[[str], None]
) -> tuple[dict[str, list[_Piece]], list[str]]:
    clean = Deduplicator() if deduplicate else None
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
                "its files are empty, or another domain holds the same paragraphs (data.deduplicate = false)",
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
    """The document in the temporary file, unless nothing of it is new."""
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
    """The first pieces up to `cap` bytes; the one that crosses is cut, at a blank line if one is near.

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
    """Where a record is learnt; nothing for plain text."""
    if not piece.spans:
        return {}
    spool.seek(piece.start + piece.size)
    found: dict[str, Any] = json.loads(spool.read(piece.spans))
    return found
