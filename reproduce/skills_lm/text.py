"""The text of the reproduction: one pool of documents per use, so that nobody is tested on what it learnt.

Documents of the installed text are dealt out, domain by domain, to three pools without a document or a longer
paragraph in common: `base` (much code, a little of every other domain), `skills` (one file per domain), and
`targets`, whose documents are made of passages of two domains in turn.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from expertise.errors import DataError
from expertise.lm.data import Document
from expertise.lm.data.corpus import Deduplicator
from expertise.lm.data.documents import normalise
from expertise.lm.data.installed import InstalledSource
from expertise.lm.data.split import nice_end
from expertise.runs.files import atomic_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pools:
    """How much text goes where, in bytes of each domain."""

    domains: tuple[str, ...] = ("headers", "docstrings", "tests", "data")
    """Domains that get a skill."""
    common: str = "code"
    """What the base mostly reads."""
    base_common: int = 4_000_000
    base_other: int = 400_000
    skill: int = 2_000_000
    target: int = 700_000
    targets: tuple[tuple[str, str], ...] = (("headers", "data"), ("docstrings", "tests"))
    """Pairs of domains that are mixed."""
    passage: int = 500
    """Bytes of a passage of one domain, about."""
    passages: int = 8
    """Passages of a target's document."""


def target_name(pair: tuple[str, str]) -> str:
    """What a mixed target is called."""
    return "+".join(pair)


def write_pools(folder: Path, pools: Pools, say: Callable[[str], None]) -> None:
    """Write `base.CODE.jsonl`, `skill.DOMAIN.jsonl` and `target.A+B.jsonl`, unless they are there.

    Raises:
        DataError: this machine has too little text of a domain.
    """
    if folder.is_dir():
        return
    clean = Deduplicator()
    with atomic_folder(folder) as made:
        for domain in (pools.common, *pools.domains):
            say(f"reading {domain}")
            texts = _documents(domain, clean)
            if domain == pools.common:
                _write(made / f"base.{domain}.jsonl", _take(texts, pools.base_common, domain))
                continue
            _write(made / f"base.{domain}.jsonl", _take(texts, pools.base_other, domain))
            _write(made / f"skill.{domain}.jsonl", _take(texts, pools.skill, domain))
            _write(made / f"part.{domain}.jsonl", _take(texts, pools.target, domain))
        for pair in pools.targets:
            parts = [_passages(made / f"part.{domain}.jsonl", pools.passage) for domain in pair]
            _write(made / f"target.{target_name(pair)}.jsonl", mixed(*parts, pools.passages))
        for part in made.glob("part.*.jsonl"):
            part.unlink()


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


def _passages(path: Path, size: int) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        raw = json.loads(line)["text"].encode()
        while len(raw) >= size // 2:
            end = nice_end(raw, size // 2, min(len(raw), 3 * size // 2), min(len(raw), size))
            yield raw[:end].decode(errors="ignore").rstrip("\n") + "\n"
            raw = raw[end:]


def _write(path: Path, texts: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
