"""Read, divide and encode a recipe's text for training and evaluation, with a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.errors import DataError, RecipeError, nearest
from expertise.lm.data.batches import CONTEXT_KEYS, Batches, ContextKeys, Windows
from expertise.lm.data.cache import Entry, entry, key_of
from expertise.lm.data.chat import Chat
from expertise.lm.data.config import KINDS, DataConfig, TokenizerConfig
from expertise.lm.data.corpus import build_text, build_whole, stored_documents
from expertise.lm.data.documents import Document
from expertise.lm.data.kinds import Kind
from expertise.lm.data.left_out import size
from expertise.lm.data.packed import PackedBatches
from expertise.lm.data.sources import digest_of, open_both
from expertise.lm.data.split import SPLITS, no_side
from expertise.lm.data.streams import STREAMS, TokenStream, build_streams, open_stream
from expertise.lm.data.templates import with_template
from expertise.lm.data.tokenizer import (
    end_of_text,
    load_tokenizer,
    tokenizer_from,
    train_tokenizer,
    vocab_size,
)

if TYPE_CHECKING:
    import tokenizers


def _silent(_line: str) -> None:
    """Ignore a line of progress."""


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | tokenizers.Tokenizer,
    say: Callable[[str], None] = _silent,
) -> Prepared:
    """Read, divide and encode the text that a recipe names, or find it in the cache.

    Args:
        data: configuration of the text.
        tokenizer: configuration of a tokenizer to train or to read, or a tokenizer.
        say: called with each line of progress; not called if everything is in the cache.

    Raises:
        RecipeError: the recipe names no data, or a domain that the data lacks.
        DataError: a source is missing, empty, unreadable or too small; the tokenizer's file holds none.
        MissingExtra: a source needs a package that is not installed.
        DiskError: the cache is full or cannot be written.
    """
    return Prepared(data, tokenizer, say)


class Prepared:
    """Text and tokens of one recipe, divided into `train`, `validation` and `test`.

    If the recipe names a validation source of its own, there is no split `test`.

    The cache may be deleted at any time: missing data are then built again.

    Args:
        data: configuration of the text.
        tokenizer: configuration of a tokenizer to train or to read, or a tokenizer.
        say: called with each line of progress.
    """

    tokenizer: tokenizers.Tokenizer
    """The tokenizer; a special token spelled out in a text is encoded as text."""

    end_of_text: int
    """Id of the token before each document."""

    vocab_size: int
    """One more than the largest id; may be smaller than asked for."""

    domains: tuple[str, ...]
    """Names of the domains of all splits; a domain's id is its index."""

    digest: str
    """SHA-256 of the sources, as `source_digest` gives it."""

    notes: tuple[str, ...]
    """Notes on text that was left out or skipped, one line each."""

    bytes: dict[str, dict[str, int]]
    """Split → domain → UTF-8 bytes of text."""

    documents_count: dict[str, dict[str, int]]
    """Split → domain → number of documents."""

    tokens_count: dict[str, dict[str, int]]
    """Split → domain → number of tokens, end-of-text tokens included."""

    def __init__(
        self,
        data: DataConfig,
        tokenizer: TokenizerConfig | tokenizers.Tokenizer,
        say: Callable[[str], None],
    ) -> None:
        self._data = data = with_template(data, tokenizer)
        self._say = say
        self._config = tokenizer if isinstance(tokenizer, TokenizerConfig) else TokenizerConfig()
        self._given = tokenizer.to_str() if not isinstance(tokenizer, TokenizerConfig) else ""
        self._kind: Kind = KINDS[data.kind](data)
        self.digest = digest_of(*open_both(data))
        text = self._text()
        self.domains = chosen_domains(data.domains, text.facts["domains"])
        self.notes = (*text.facts["notes"], *_not_chosen(self.domains, text.facts["bytes"]))
        self.bytes, self.documents_count = (
            {side: {domain: counts[domain] for domain in self.domains} for side, counts in facts.items()}
            for facts in (text.facts["bytes"], text.facts["documents"])
        )
        for side, counts in self.documents_count.items():
            if not any(counts.values()):
                raise RecipeError(
                    f"the {side} text has none of data.domains: {', '.join(data.domains)}",
                    "name the domains of data.validation too",
                )
        tokens = self._tokens()
        self.tokens_count = tokens.facts["tokens"]
        self.notes += tuple(tokens.facts.get("notes", ()))
        self.tokenizer = load_tokenizer(tokens.path / "tokenizer.json")
        self.end_of_text = end_of_text(self.tokenizer)
        self.vocab_size = vocab_size(self.tokenizer)

    @property
    def packed(self) -> bool:
        """True if a window holds whole documents, each attended to by itself."""
        return self._data.packed

    @property
    def some_ignored(self) -> bool:
        """True if a batch may have targets that are ignored: of records, and in windows that are padded."""
        return self.packed or self._kind.records

    @property
    def chat(self) -> Chat | None:
        """The chat template that rendered messages, if there was one."""
        return self._kind.chat

    def batches(self, context: int, batch_size: int, seed: int, keys: ContextKeys = CONTEXT_KEYS) -> Windows:
        """Return training batches, packed as the recipe says.

        Args:
            context: tokens per sequence.
            batch_size: sequences per batch.
            seed: seed of their order.
            keys: names of the recipe keys that set the context, for the error.

        Raises:
            DataError: there is too little text for one batch.
        """
        kind = PackedBatches if self.packed else Batches
        return kind(self.stream("train"), context, batch_size, seed, keys)

    def stream(self, split: str) -> TokenStream:
        """Return the tokens of `train`, `validation` or `test`, memory-mapped."""
        found = self._tokens()
        return open_stream(found.path, self._side(split), found.facts["dtype"], self.domains)

    def domains_of(self, split: str) -> tuple[str, ...]:
        """Return the domains that have text in a split."""
        counts = self.documents_count[self._side(split)]
        return tuple(domain for domain in self.domains if counts[domain])

    def documents(self, split: str, domain: str) -> Iterator[str]:
        """Yield the texts of one split and domain, in stored order."""
        return (document.text for document in self.records(split, domain))

    def records(self, split: str, domain: str) -> Iterator[Document]:
        """Yield the documents of one split and domain, with the learnt ranges of each."""
        if domain not in self.domains:
            raise KeyError(f"no domain {domain!r}; there are {', '.join(self.domains)}")
        return (document for document in self.side(split) if document.domain == domain)

    def side(self, split: str) -> Iterator[Document]:
        """Yield the documents of one split, of all domains, in stored order."""
        stored = stored_documents(self._text().path, self._side(split))
        return (document for document in stored if document.domain in self.domains)

    def _side(self, split: str) -> str:
        if split not in SPLITS:
            raise KeyError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if split not in self.documents_count:
            raise no_side(split)
        return split

    def _text(self) -> Entry:
        data = self._data

        def build(folder: Path) -> dict[str, Any]:
            sources, validation = open_both(data)
            if digest_of(sources, validation) != self.digest:
                raise DataError(
                    "the text has changed since it was first read, and its cache is gone",
                    "start again, or bring the old text back",
                )
            asked = data.cap_bytes, data.deduplicate, folder, self._say
            if validation:
                return build_whole({"validation": validation}, sources, *asked)
            return build_text(sources, *asked)

        return entry("text", self._text_key(), build)

    def _tokens(self) -> Entry:
        def build(folder: Path) -> dict[str, Any]:
            text = self._text()
            if given:
                chosen = self._given_tokenizer()
                end_of_text(chosen)  # adds one if there is none
            else:
                self._say("training the tokenizer")
                chosen = train_tokenizer(self._training_texts(text.path), self._config.vocab_size)
            chosen.save(str(folder / "tokenizer.json"))
            self._say("encoding the text")
            sides = tuple(self.documents_count)
            return build_streams(text.path, chosen, self.domains, folder, sides, self.chat)

        given = _file_digest(Path(self._config.path)) if self._config.path else _text_digest(self._given)
        # A tokenizer that is trained here has a token for each byte: its older streams stay valid.
        asked = [given, STREAMS] if given else [self._config.vocab_size, self._config.train_bytes]
        return entry("tokens", key_of(self._text_key(), asked, *self._data.domains), build)

    def _given_tokenizer(self) -> tokenizers.Tokenizer:
        if self._config.path:
            return load_tokenizer(Path(self._config.path))
        return tokenizer_from(self._given)

    def _text_key(self) -> str:
        data = self._data
        skipping = [data.on_bad, data.bad_share] if data.on_bad != "stop" else []
        return key_of(self.digest, data.cap_bytes, data.deduplicate, *self._kind.settings(), *skipping)

    def _training_texts(self, text: Path) -> Iterator[str]:
        """Yield the first documents of each domain's training text, an equal number of bytes for each."""
        domains = self.domains_of("train")
        left = dict.fromkeys(domains, max(1, self._config.train_bytes // len(domains)))
        for document in stored_documents(text, "train"):
            room = left.get(document.domain, 0)
            if room > 0:
                raw = document.text.encode()
                left[document.domain] -= len(raw)
                yield document.text if len(raw) <= room else raw[:room].decode(errors="ignore")
            elif max(left.values()) <= 0:
                return


def chosen_domains(asked: list[str], known: list[str]) -> tuple[str, ...]:
    """Return the domains that are asked for, in the order of the text's own."""
    for domain in asked:
        if domain not in known:
            raise RecipeError(f"the text has no domain {domain!r}", nearest(domain, known))
    return tuple(domain for domain in known if domain in asked or not asked)


def _not_chosen(chosen: tuple[str, ...], num_bytes: dict[str, dict[str, int]]) -> list[str]:
    """Return a note about the domains that `data.domains` leaves out."""
    total: dict[str, int] = {}
    for of_side in num_bytes.values():
        for domain, number in of_side.items():
            total[domain] = total.get(domain, 0) + number
    others = [f"{domain} ({size(number)})" for domain, number in total.items() if domain not in chosen]
    return [f"left out by data.domains: {', '.join(others)}"] if others else []


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"cannot read the tokenizer {path}: {error.strerror or error}",
            "tokenizer.path names a tokenizer.json; leave it out to train one",
        ) from None
