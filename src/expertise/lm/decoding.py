"""Decode tokens to text as they are generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNKNOWN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8; an unfinished one has at most three tokens."""


class Decoder:
    """Decodes ids to text one by one; bytes of an unfinished character wait for the rest of it.

    The work is done by the decode stream of `tokenizers`. Two things it does not do: it holds back everything
    after bytes that are no character until other text comes, and it raises an error where a later token
    changes how earlier ones are written (byte tokens of Llama's kind, for one). Both are handled here.

    Args:
        tokenizer: decodes the ids; control tokens are shown, too.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []
        self._restart()

    def add(self, token: int) -> str:
        """Add a token and return the text that it completes; empty while a character is unfinished."""
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the library raises bare Exception
            text = self._text([*self._waiting, token])
            self._restart()
        if text is not None:
            self._waiting = []
            return text
        if self._text([token]):  # an id that the tokenizer does not know has none
            self._waiting.append(token)
        return self._release()

    def rest(self) -> str:
        """Return the text of the tokens that still wait: bytes that never became a character."""
        return self._text(self._waiting)

    def _release(self) -> str:
        """Return the text of the oldest waiting tokens that cannot be part of a character."""
        waiting = self._waiting
        # Without them the rest may be readable. When as many wait as a character has bytes, some must be
        # released, but none that belong together.
        most = self._text(waiting).count(_UNKNOWN) - (len(waiting) < _LONGEST_CHARACTER)
        for number in range(1, len(waiting) + 1):
            oldest, newest = waiting[:number], waiting[number:]
            if (self._text(oldest) + self._text(newest)).count(_UNKNOWN) <= most:
                self._waiting = []
                self._restart()
                return self._text(oldest) + "".join(map(self.add, newest))
        return ""

    def _restart(self) -> None:
        from tokenizers.decoders import DecodeStream  # not needed to import expertise.lm

        self._stream = DecodeStream(skip_special_tokens=False)

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""
