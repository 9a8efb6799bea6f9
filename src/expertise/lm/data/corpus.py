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

from expertise.errors import DataError
from expertise.lm.data.documents import Document, Source, normalise
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


@dataclass(frozen=True)
class _Piece:
    """A document, or a section of one, in the temporary file."""

    id: str
    start: int
    size: int


class Deduplicator:
    """Drops paragraphs (between blank lines, 60 bytes or more) that were met before, in any document."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, text: str) -> str:
        """`text` without paragraphs already seen; what is left is unchanged, byte for byte."""
        parts = _BLANK_LINES.split(text)
        kept: list[str] = []
        for i in range(0, len(parts), 2):
            raw = parts[i].encode()
            if len(raw) >= _SHORTEST_DUPLICATE:
                key = hashlib.blake2b(raw, digest_size=16).digest()
                if key in self._seen:
                    continue
                self._seen.add(key)
            kept.extend(parts[i : i + 2])
        return "".join(kept)


def build_text(
    sources: list[Source], cap_bytes: int, deduplicate: bool, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`, documents of all domains in hash order.

    Args:
        sources: where the text comes from, in order; several may share a domain.
        cap_bytes: bytes of each domain that are kept; 0 keeps all. The document that crosses it is cut.
        deduplicate: whether repeated paragraphs are dropped.
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
                    text = _read(spool, piece).decode()
                    row = {"id": piece.id, "domain": domain, "text": text}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    num_bytes[side][domain] += piece.size
                    num_documents[side][domain] += 1
    return {"domains": list(pieces), "bytes": num_bytes, "documents": num_documents, "notes": notes}


def stored_documents(folder: Path, side: str) -> Iterator[Document]:
    """What `build_text` stored for one side, in stored order."""
    with (folder / f"{side}.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document(**json.loads(line))


def _gather(
    sources: list[Source], cap: int, deduplicate: bool, spool: IO[bytes], say: Callable[[str], None]
) -> tuple[dict[str, list[_Piece]], list[str]]:
    clean = Deduplicator() if deduplicate else str
    pieces: dict[str, list[_Piece]] = {}
    total: dict[str, int] = {}
    notes: list[str] = []
    for source in sources:
        domain = source.domain
        kept = pieces.setdefault(domain, [])
        have = total.setdefault(domain, 0)
        # A small cap must not hide whether an optional domain is large enough to be used.
        limit = max(cap, source.minimum_bytes) if cap else 0
        if limit and have >= limit:
            continue
        say(f"reading {domain}")
        # Closing the generator at the cap closes the file it reads.
        with contextlib.closing(_documents(source)) as documents:
            for document in documents:
                text = clean(normalise(document.text))
                if not text.strip():
                    continue
                raw = text.encode()
                kept.append(_Piece(document.id, spool.tell(), spool.write(raw)))
                have += len(raw)
                if limit and have >= limit:
                    break
        total[domain] = have
        notes += source.notes()
    for source in sources:
        domain = source.domain
        if domain in pieces and total[domain] < source.minimum_bytes:
            del pieces[domain]
            notes.append(f"left out the domain {domain}: {total[domain] / 1e6:.2f} MB is too little")
        elif domain in pieces and not pieces[domain]:
            raise DataError(
                f"the domain {domain!r} has no text left",
                "its files are empty, or another domain holds the same paragraphs (data.deduplicate = false)",
            )
    if cap:
        pieces = {domain: _capped(kept, cap, spool) for domain, kept in pieces.items()}
    return pieces, notes


def _documents(source: Source) -> Generator[Document, None, None]:
    yield from source.documents()


def _capped(pieces: list[_Piece], cap: int, spool: IO[bytes]) -> list[_Piece]:
    """The first pieces up to `cap` bytes; the one that crosses is cut, at a blank line if one is near."""
    kept: list[_Piece] = []
    left = cap
    for piece in pieces:
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
        pieces = [part for piece in pieces for part in _sections(piece, target, spool)]
        if len(pieces) < len(SPLITS):
            raise DataError(
                f"the domain {domain!r} has only {total} bytes, too few to give train, validation and test",
                "add text to its source",
            )
        sides = assign_runs([piece.size for piece in pieces])
    return ((SPLITS[side], piece) for side, piece in zip(sides, pieces, strict=True))


def _sections(piece: _Piece, target: int, spool: IO[bytes]) -> list[_Piece]:
    ends = section_ends(_read(spool, piece), target) if piece.size > target else [piece.size]
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
