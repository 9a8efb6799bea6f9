"""Text that a model is looked at on: a run's own, which its folder keeps, or given text, all of it."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.errors import DataError, RunError
from expertise.lm.data.cache import entry, key_of
from expertise.lm.data.chat import Chat
from expertise.lm.data.config import KINDS, DataConfig
from expertise.lm.data.corpus import build_whole, stored_documents
from expertise.lm.data.documents import Document
from expertise.lm.data.kinds import Kind
from expertise.lm.data.prepare import Prepared, chosen_domains
from expertise.lm.data.sources import digest_of, open_sources
from expertise.lm.data.split import ALL, HELD_OUT_SIDES, no_side
from expertise.lm.data.templates import with_template
from expertise.lm.data.tokenizer import copied, end_of_text, load_tokenizer, vocab_size
from expertise.runs.files import atomic_folder, disk_errors, remove, sha256_of, sha256_of_json

if TYPE_CHECKING:
    import tokenizers

HELD_OUT = "held-out"
"""The folder of a run, or of a composed model, that keeps its held-out text."""

_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Text that is only looked at."""

    digest: str
    """SHA-256 of the sources that it came from, as `source_digest` gives it."""
    domains: tuple[str, ...]
    """The domains' names, those of training text included."""
    documents_count: Mapping[str, Mapping[str, int]]
    """Side → domain → number of documents."""
    notes: tuple[str, ...]
    """What was left out or skipped when it was read, a line each."""
    packed: bool
    """Whether a window holds whole documents, each attended to by itself."""
    tokenizer: tokenizers.Tokenizer
    """Encodes and decodes."""
    chat: Chat | None
    """The chat template that made text of messages, where there was one."""
    read: Callable[[str], Iterator[Document]]
    """Side → its documents, in stored order."""

    @property
    def end_of_text(self) -> int:
        """The id of the token before each document."""
        return end_of_text(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return vocab_size(self.tokenizer)

    def domains_of(self, split: str) -> tuple[str, ...]:
        """The domains that have text on a side.

        Raises:
            RecipeError: there is no such side.
        """
        if split not in self.documents_count:
            raise no_side(split)
        return tuple(domain for domain in self.domains if self.documents_count[split].get(domain))

    def records(self, split: str, domain: str) -> Iterator[Document]:
        """The documents of one side and domain, with what is learnt of each."""
        return (document for document in self.read(split) if document.domain == domain)


Readable = Prepared | HeldOut
"""Text in sides and domains, and the tokenizer that reads it."""


def all_of(data: DataConfig, tokenizer: tokenizers.Tokenizer, say: Callable[[str], None]) -> HeldOut:
    """Given text, all of it, as the side `all`: nothing is divided, dropped as repeated, or cut.

    Args:
        data: which text; a cap and a validation source have no meaning here.
        tokenizer: what it is read with.
        say: told what is being read.

    Raises:
        RecipeError: no data is named, or a domain that the data lacks.
        DataError: a source is missing, empty or unreadable.
    """
    data = with_template(data, tokenizer)
    kind: Kind = KINDS[data.kind](data)
    digest = digest_of(open_sources(data))

    def build(folder: Path) -> dict[str, Any]:
        sources = open_sources(data)
        if digest_of(sources) != digest:
            raise DataError("the text has changed while it was read", "run the same command again")
        return build_whole({ALL: sources}, [], 0, False, folder, say)

    found = entry("text", key_of(ALL, digest, *kind.settings()), build)
    return HeldOut(
        digest=digest,
        domains=chosen_domains(data.domains, found.facts["domains"]),
        documents_count=found.facts["documents"],
        notes=tuple(found.facts["notes"]),
        packed=data.packed,
        tokenizer=copied(tokenizer),
        chat=kind.chat,
        read=lambda side: stored_documents(found.path, side),
    )


def keep(prepared: Prepared, folder: Path) -> None:
    """Write the held-out text of a training into a folder, whole or not at all; what stood there is replaced.

    Args:
        prepared: the text.
        folder: becomes `validation.jsonl.gz`, `test.jsonl.gz` where there is a test side, and a manifest with
            the size and SHA-256 of each.

    Raises:
        DiskError: the disk is full, read-only or forbidden.
    """
    with disk_errors(folder):
        remove(folder)
    with atomic_folder(folder) as aside:
        fill(prepared, aside)


def fill(prepared: Prepared, folder: Path) -> None:
    """The same into a folder that appears whole with what is around it."""
    folder.mkdir(exist_ok=True)
    files = {}
    sides = [side for side in HELD_OUT_SIDES if side in prepared.documents_count]
    for side in sides:
        path = folder / f"{side}.jsonl.gz"
        # Without a name and a time in it: the same text gives the same bytes.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            for document in prepared.side(side):
                file.write((json.dumps(document.to_json(), ensure_ascii=False) + "\n").encode())
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    content = {
        "format": _FORMAT,
        "digest": prepared.digest,
        "domains": list(prepared.domains),
        "documents": {side: prepared.documents_count[side] for side in sides},
        "notes": list(prepared.notes),
        "packed": prepared.packed,
        "template": prepared.chat.template if prepared.chat else None,
        "files": files,
    }
    text = json.dumps({**content, "sha256": sha256_of_json(content)}, indent=1, ensure_ascii=False)
    (folder / _MANIFEST).write_text(text + "\n", "utf-8")


def kept(folder: Path, tokenizer: Path | tokenizers.Tokenizer) -> HeldOut | None:
    """The held-out text that a folder keeps, every file held against the manifest; None: it keeps none.

    Args:
        folder: what `keep` wrote.
        tokenizer: what it is read with, or the file of it.

    Raises:
        RunError: it is damaged, or of another version.
    """
    if not folder.exists():
        return None
    manifest = _checked(folder)
    template = manifest.get("template")
    return HeldOut(
        digest=manifest["digest"],
        domains=tuple(manifest["domains"]),
        documents_count=manifest["documents"],
        notes=tuple(manifest["notes"]),
        packed=manifest["packed"],
        tokenizer=load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else copied(tokenizer),
        chat=None if template is None else Chat(template),
        read=lambda side: _unpacked(folder / f"{side}.jsonl.gz"),
    )


def is_kept(folder: Path, digest: str) -> bool:
    """Whether a folder keeps the held-out text of the sources with this digest, and is whole."""
    try:
        return bool(_checked(folder)["digest"] == digest)
    except RunError:
        return False


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest, once every file was found to be what was written."""
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text("utf-8"))
        content = {key: value for key, value in manifest.items() if key != "sha256"}
        if manifest["sha256"] != sha256_of_json(content):
            raise ValueError
        if manifest["format"] != _FORMAT:
            raise RunError(f"{folder} has format {manifest['format']}, this version reads {_FORMAT}")
        bad = next(
            (name for name, entry in manifest["files"].items() if not _is_whole(folder / name, entry)), ""
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        bad = _MANIFEST
    if bad:
        raise RunError(
            f"damaged held-out text {folder}: {bad} is missing or not what was written",
            f"delete {folder}: as long as the sources are unchanged the text is read from them again",
            "or look at other text with --data FILE",
        )
    return manifest


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == entry["size"] and sha256_of(path) == entry["sha256"]


def _unpacked(path: Path) -> Iterator[Document]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document.from_json(json.loads(line))
