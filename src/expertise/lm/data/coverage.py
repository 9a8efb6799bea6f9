"""Text that a tokenizer cannot write: characters without a token, and tokens that stand for the unknown."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from expertise.lm.data.tokenizer import encode
from expertise.shapes import Int

if TYPE_CHECKING:
    import tokenizers

_SHOWN = 5


class Coverage:
    """Counts the characters of texts that get no token, and the tokens that stand for an unknown character.

    A tokenizer with a token for each byte has neither; others lose such text without an error. Spaces and
    controls are passed over: many tokenizers drop or join them by design.

    Args:
        tokenizer: the one that encodes the texts.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer, self._unknown = tokenizer, _unknown_id(tokenizer)
        self._met: set[str] = set()
        self._lost: dict[str, int] = {}
        self._num_characters = self._num_tokens = self._num_unknown = 0

    def add(self, text: str, ids: Int[np.ndarray, " tokens"]) -> None:
        """Count a text and the tokens that were made of it."""
        characters = set(text)
        if fresh := sorted(c for c in characters - self._met if c.isprintable() and not c.isspace()):
            self._lost |= dict.fromkeys(self._without_token(fresh), 0)
        self._met |= characters
        for character in characters & self._lost.keys():
            self._lost[character] += text.count(character)
        self._num_characters += len(text)
        self._num_tokens += len(ids)
        if self._unknown is not None:
            self._num_unknown += int((ids == self._unknown).sum())

    def notes(self) -> list[str]:
        """How much was lost, a line for characters and one for tokens."""
        notes = []
        if self._lost:
            most = sorted(self._lost, key=lambda character: -self._lost[character])[:_SHOWN]
            notes.append(
                f"left out: {sum(self._lost.values()):,} of {self._num_characters:,} characters, of which "
                f"the tokenizer makes no token (most often {', '.join(map(repr, most))})"
            )
        if self._unknown is not None and self._num_unknown:
            name = self._tokenizer.id_to_token(self._unknown)
            notes.append(
                f"{self._num_unknown:,} of {self._num_tokens:,} tokens are {name!r}: "
                "the tokenizer does not know what stands there"
            )
        return notes

    def _without_token(self, characters: list[str]) -> list[str]:
        try:
            encoded = encode(self._tokenizer, characters)
        except Exception:  # a vocabulary of words, without an unknown one: it refuses what it would lose
            return []
        return [character for character, ids in zip(characters, encoded, strict=True) if not len(ids)]


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    name: str | None = getattr(tokenizer.model, "unk_token", None)
    if name is not None:
        return tokenizer.token_to_id(name)
    # A Unigram model tells it in its file only.
    found: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return found
