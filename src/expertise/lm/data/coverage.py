"""Count text that a tokenizer cannot encode: characters without a token, and unknown tokens."""

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
    """Counts the characters of texts that get no token, and the tokens for unknown characters.

    A tokenizer with a token for each byte has neither; others lose such text without an error. Spaces and
    control characters are not counted: many tokenizers drop or join them by design.

    Args:
        tokenizer: the tokenizer that encodes the texts.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer, self._unknown = tokenizer, _unknown_id(tokenizer)
        self._met: set[str] = set()
        self._lost: dict[str, int] = {}
        self._num_characters = self._num_tokens = self._num_unknown = 0

    def add(self, text: str, ids: Int[np.ndarray, " tokens"]) -> None:
        """Count the losses of one text, given the tokens that it was encoded to."""
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
        """Describe the losses, one line for characters and one for tokens."""
        notes = []
        if self._lost:
            most = sorted(self._lost, key=lambda character: -self._lost[character])[:_SHOWN]
            notes.append(
                f"left out: {sum(self._lost.values()):,} of {self._num_characters:,} characters, for which "
                f"the tokenizer has no token (most often {', '.join(map(repr, most))})"
            )
        if self._unknown is not None and self._num_unknown:
            name = self._tokenizer.id_to_token(self._unknown)
            notes.append(
                f"{self._num_unknown:,} of {self._num_tokens:,} tokens are {name!r}: "
                "the tokenizer has no token for the text there"
            )
        return notes

    def _without_token(self, characters: list[str]) -> list[str]:
        try:
            encoded = encode(self._tokenizer, characters)
        except Exception:  # without an unknown token some vocabularies raise an error
            return []
        return [character for character, ids in zip(characters, encoded, strict=True) if not len(ids)]


def _unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    name: str | None = getattr(tokenizer.model, "unk_token", None)
    if name is not None:
        return tokenizer.token_to_id(name)
    # A Unigram model names it only in its file.
    found: int | None = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return found
