"""Documents as tokens, with what is learnt of them."""

from __future__ import annotations

import enum
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expertise.lm.data.chat import Chat
from expertise.lm.data.documents import Document
from expertise.lm.data.messages import Message
from expertise.lm.data.tokenizer import encode, tokenizer_from, without_prefix
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


class _After(enum.Enum):
    """What a piece of text follows, which decides whether a tokenizer puts a space before it."""

    NOTHING = enum.auto()
    TOKEN = enum.auto()
    TEXT = enum.auto()


@dataclass(frozen=True)
class _Piece:
    """Text that is encoded by itself, or a control token."""

    text: str
    learnt: bool
    after: _After
    token: int | None = None


@dataclass(frozen=True)
class _Control:
    """The control tokens of a conversation."""

    tokens: Mapping[str, tuple[int, tokenizers.AddedToken]]
    """Text → id, and how the tokenizer finds it."""
    pattern: re.Pattern[str]
    """Finds the longest of them."""


def encode_documents(
    tokenizer: tokenizers.Tokenizer, documents: Sequence[Document], chat: Chat | None = None
) -> list[Encoded]:
    """Encode documents; a token never reaches across the border between what is learnt and what is not.

    So a prompt has the tokens that it will have when the model is asked, and the bytes that are learnt do not
    depend on the tokenizer. In a conversation the tokenizer's special tokens, and other added ones that the
    chat template writes of its own, are tokens where the template wrote them; a message that spells one out
    is text.

    Args:
        tokenizer: from `load_tokenizer` or `train_tokenizer`.
        documents: any number, in memory at once; all are conversations, or none is.
        chat: the template that made text of conversations; without it, what it wrote in these is all that is
            known of it.

    Raises:
        DataError: the tokenizer has no token for a part of a text, and no unknown token.
    """
    is_chat = any(document.written for document in documents)
    own = chat.own if chat else "\0".join(d.text[a:b] for d in documents for a, b in d.written)
    control = _control(tokenizer, own if is_chat else "")
    added = frozenset(name for name, (_, token) in control.tokens.items() if not token.special)
    pieces = [list(_pieces(document, control)) for document in documents]
    texts: dict[_After, Iterator[Int[np.ndarray, " tokens"]]] = {}
    for after in _After:
        wanted = [p.text for of_one in pieces for p in of_one if p.token is None and p.after is after]
        reader = _reader(tokenizer, tokenizer.get_vocab_size(), added, after) if wanted else tokenizer
        texts[after] = iter(encode(reader, wanted))
    return [_joined(document, of_one, texts) for document, of_one in zip(documents, pieces, strict=True)]


def encode_prompt(
    tokenizer: tokenizers.Tokenizer, chat: Chat, messages: Sequence[Message], where: str = "the prompt"
) -> list[int]:
    """Token ids of a conversation up to where the assistant is to speak, as training encodes it.

    Args:
        tokenizer: from `load_tokenizer` or `train_tokenizer`.
        chat: the chat template.
        messages: in order, as `read_messages` gives them.
        where: where they stand, for the error.

    Raises:
        DataError: the template refuses them or leaves something out.
    """
    found = chat.prompt(messages, where)
    document = Document("prompt", "prompt", found.text, learnt=(), written=found.written)
    (encoded,) = encode_documents(tokenizer, [document], chat)
    return [int(token) for token in encoded.ids]


def _control(tokenizer: tokenizers.Tokenizer, own: str) -> _Control:
    """The added tokens that are special or that a template writes; never white space, which all text has."""
    tokens = {
        token.content: (number, token)
        for number, token in tokenizer.get_added_tokens_decoder().items()
        if token.content.strip() and (token.special or token.content in own)
    }
    names = sorted(tokens, key=len, reverse=True)
    whole = {name: rf"(?<!\w){re.escape(name)}(?!\w)" for name in names if tokens[name][1].single_word}
    return _Control(tokens, re.compile("|".join(whole.get(n, re.escape(n)) for n in names) or "(?!)"))


@functools.lru_cache(maxsize=8)
def _reader(
    tokenizer: tokenizers.Tokenizer, _size: int, added: frozenset[str], after: _After
) -> tokenizers.Tokenizer:
    """The tokenizer for pieces that follow something, to which some added tokens are mere text.

    Args:
        tokenizer: the one that is used.
        _size: of its vocabulary, which tells whether it is still as it was.
        added: tokens that it would find in any text.
        after: what the pieces follow.
    """
    if added:
        values = json.loads(tokenizer.to_str())
        # Special ones are text where a text spells them out.
        values["added_tokens"] = [
            {**token, "special": token["special"] or token["content"] in added}
            for token in values["added_tokens"]
        ]
        tokenizer = tokenizer_from(json.dumps(values))
    return tokenizer if after is _After.NOTHING else without_prefix(tokenizer, after is _After.TEXT)


def _pieces(document: Document, control: _Control) -> Iterator[_Piece]:
    """Pieces of text and control tokens, in order."""
    if document.learnt is None:
        yield _Piece(document.text, True, _After.NOTHING)
        return
    borders = sorted({place for span in document.learnt for place in span})
    at = 0
    for start, end, learnt, token in [*_tokens(document, control), (len(document.text), 0, False, None)]:
        places = [at, *(border for border in borders if at < border < start), start]
        for number, (first, last) in enumerate(itertools.pairwise(places)):
            if last > first:
                after = _After.TEXT if number else _After.TOKEN if at else _After.NOTHING
                yield _Piece(document.text[first:last], _within(document.learnt, first), after)
        if token is not None:
            yield _Piece(document.text[start:end], learnt, _After.TEXT, token)
        at = end


def _tokens(document: Document, control: _Control) -> Iterator[tuple[int, int, bool, int]]:
    """(start, end, whether it is learnt, id) of each control token that the template wrote.

    Some tokens take the white space beside them in, but none that is learnt where they are not.
    """
    text, spans, before = document.text, document.learnt or (), 0
    for first, last in document.written:
        for match in control.pattern.finditer(text, first, last):
            number, token = control.tokens[match[0]]
            start, end = match.span()
            learnt = _within(spans, start)

            def taken(place: int, learnt: bool = learnt) -> bool:
                same = _within(spans, place) == learnt or _within(document.written, place)
                return text[place].isspace() and same

            while token.lstrip and start > before and taken(start - 1):
                start -= 1
            while token.rstrip and end < len(text) and taken(end):
                end += 1
            yield start, end, learnt, number
            before = end


def _within(spans: Sequence[tuple[int, int]], place: int) -> bool:
    return any(start <= place < end for start, end in spans)


def _joined(
    document: Document, pieces: list[_Piece], texts: Mapping[_After, Iterator[Int[np.ndarray, " tokens"]]]
) -> Encoded:
    ids = [
        next(texts[piece.after]) if piece.token is None else np.array([piece.token], dtype=np.int64)
        for piece in pieces
    ]
    if document.learnt is None:
        return Encoded(ids[0], None)
    marks = [np.full(len(found), piece.learnt) for piece, found in zip(pieces, ids, strict=True)]
    nothing = np.zeros(0, dtype=np.int64)
    return Encoded(np.concatenate([nothing, *ids]), np.concatenate([nothing.astype(bool), *marks]))
