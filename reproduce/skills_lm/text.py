"""The text of the reproduction: one pool of documents per use, so that nobody is tested on what it learnt.

Documents of the installed text are dealt out, domain by domain, to pools without a document or a longer
paragraph in common: `base` (much code, a little of every other domain), `skill` (one file per domain), and
passages, of which targets are made, to `learn` from, to `select` on and to be `held` out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from expertise.errors import DataError
from expertise.lm.data import Document
from expertise.lm.data.corpus import Deduplicator
from expertise.lm.data.documents import normalise
from expertise.lm.data.installed import InstalledSource
from expertise.lm.data.split import nice_end
from expertise.runs.files import atomic_folder, write_atomic
from reproduce.skills_lm.plan import COMMON, SKILLS, TARGETS, PoolPlan, Use, file_of


def write_pools(folder: Path, pools: PoolPlan, say: Callable[[str], None]) -> None:
    """Write `base.DOMAIN.jsonl`, `skill.DOMAIN.jsonl` and `USE.A+B.jsonl`, unless they are there.

    Raises:
        DataError: this machine has too little text of a domain.
    """
    if folder.is_dir():
        return
    clean = Deduplicator()
    passages: dict[tuple[Use, str], list[str]] = {}
    with atomic_folder(folder) as made:
        for domain in (COMMON, *SKILLS):
            say(f"reading {domain}")
            texts = _documents(domain, clean)
            size = pools.base_common if domain == COMMON else pools.base_other
            _write(made / f"base.{domain}.jsonl", _take(texts, size, domain))
            if domain == COMMON:
                continue
            _write(made / f"skill.{domain}.jsonl", _take(texts, pools.skill, domain))
            for use in get_args(Use):
                passages[use, domain] = _passages(texts, pools, getattr(pools, use), domain)
        for pair in TARGETS:
            for use in get_args(Use):
                first, second = (iter(passages[use, domain]) for domain in pair)
                _write(made / f"{file_of(pair, use)}.jsonl", mixed(first, second, pools.passages))


def write_few(folder: Path, pair: tuple[str, str], num_bytes: int, texts: Iterator[str]) -> str:
    """A pool with the first of a target's documents, unless it is there; its name.

    Args:
        folder: of the pools.
        pair: the target.
        num_bytes: how much of it.
        texts: documents to learn from.
    """
    name = f"few.{num_bytes}.{file_of(pair)}"
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        lines = (json.dumps({"text": text}) + "\n" for text in _first(texts, num_bytes))
        write_atomic(path, "".join(lines))
    return name


def _first(texts: Iterator[str], num_bytes: int) -> Iterator[str]:
    left = num_bytes
    for text in texts:
        raw = text.encode()[:left]
        left -= len(raw)
        yield raw.decode(errors="ignore")
        if not left:
            return


def mixed(first: Iterator[str], second: Iterator[str], number: int) -> Iterator[str]:
    """Documents of so many passages, from the two in turn, until one of them ends; each begins with `first`
    and with `second` equally often."""
    pairs = zip(first, second, strict=False)
    swap = False
    while True:
        taken = [pair for _, pair in zip(range(number // 2), pairs, strict=False)]
        if len(taken) < number // 2:
            return
        yield "".join(text for pair in taken for text in (reversed(pair) if swap else pair))
        swap = not swap


def _documents(domain: str, clean: Deduplicator) -> Iterator[str]:
    source = InstalledSource(domain)
    document: Document
    for document in source.documents():
        text = clean(normalise(document.text))
        if text.strip():
            yield text


def _take(texts: Iterator[str], num_bytes: int, domain: str) -> Iterator[str]:
    left = num_bytes
    for text in texts:
        yield text
        left -= len(text.encode())
        if left <= 0:
            return
    raise DataError(f"the installed text has too little of {domain}: {left / 1e6:.1f} MB are missing")


def _passages(texts: Iterator[str], pools: PoolPlan, number: int, domain: str) -> list[str]:
    """The first passages of so many documents; those that are too short are passed over."""
    found: list[str] = []
    for text in texts:
        if not number:
            return found
        pieces = _cut(text, pools.passage, pools.most)
        if len(pieces) >= pools.least:
            found += pieces
            number -= 1
    if number:
        raise DataError(f"the installed text has too little of {domain}: {number} documents are missing")
    return found


def _cut(text: str, size: int, most: int) -> list[str]:
    raw = text.encode()
    pieces: list[str] = []
    while len(raw) >= size // 2 and len(pieces) < most:
        end = nice_end(raw, size // 2, min(len(raw), 3 * size // 2), min(len(raw), size))
        pieces.append(raw[:end].decode(errors="ignore").rstrip("\n") + "\n")
        raw = raw[end:]
    return pieces


def _write(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
