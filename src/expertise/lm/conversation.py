"""A conversation with a model: messages from a file, turns one by one, answers as they are made."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Any

from expertise.errors import DataError, RecipeError
from expertise.lm.causal import CausalLM
from expertise.lm.data.messages import Message, read_messages
from expertise.lm.text import Piece, continue_text, prompt_tokens
from expertise.runs.files import decoded, require_utf8

_SYSTEM = ("system", "developer")
"""Who says what holds for the whole conversation."""
_QUESTION: tuple[Message, ...] = ({"role": "user", "content": "?"},)
_EXAMPLE = 'write it as [{"role": "user", "content": "…"}, …], or one message per line'


class Conversation:
    """Messages so far, and a model that answers them.

    An answer that is broken off stays as far as it came; where it had not begun, its question is taken back.
    When the messages and room for an answer exceed the model's context, the oldest turns are left out of what
    the model reads, the system prompt apart.

    Args:
        model: with its tokenizer and its chat template.
        messages: what was said before.
        system: a system prompt, put in front; empty: none but that of `messages`.
        max_new_tokens: tokens of an answer at most.
        settings: of the sampling, as `continue_text` takes them; each answer begins with the same seed.

    Raises:
        RunError: the model has no tokenizer, or no chat template.
        DataError: the template refuses the system prompt, or leaves it out.
        RecipeError: there are two system prompts.
    """

    def __init__(
        self,
        model: CausalLM,
        messages: Sequence[Message] = (),
        *,
        system: str = "",
        max_new_tokens: int,
        **settings: Any,
    ) -> None:
        self.messages = list(messages)
        if system and any(message["role"] in _SYSTEM for message in messages):
            raise RecipeError("the messages have a system prompt of their own: leave --system out")
        if system:
            self.messages = [*read_messages([{"role": "system", "content": system}], "--system"), *messages]
        self._model, self._max_new_tokens, self._settings = model, max_new_tokens, settings
        self._first = self._num_system = _num_system(self.messages)
        self.answer: list[Piece] = []
        # What is refused is refused now: no template, or one that leaves a system prompt out.
        prompt_tokens(model, [*self.messages[: self._num_system], *_QUESTION])

    messages: list[Message]
    """All that was said, answers included."""
    answer: list[Piece]
    """The last answer's pieces, as far as it has come."""

    @property
    def context(self) -> int:
        """How many tokens the model reads at most."""
        return self._model.context

    @property
    def num_forgotten(self) -> int:
        """How many of the oldest messages the model does not read any more."""
        return self._first - self._num_system

    def ask(self, content: str, where: str = "the message") -> Generator[Piece, None, None]:
        """Say something as the user, and give the answer piece by piece.

        Raises:
            DataError: it is empty, or the template refuses it.
            RecipeError: it does not fit the context.
        """
        self.messages += read_messages([{"role": "user", "content": content}], where)
        yield from self._answered(forget=True)

    def go_on(self) -> Generator[Piece, None, None]:
        """Answer the last message, piece by piece; no message is left out.

        Raises:
            RecipeError: there is none, the last one is the assistant's, or they do not fit the context.
        """
        if not self.messages or self.messages[-1]["role"] not in ("user", "tool"):
            said = f"the last message is the {self.messages[-1]['role']}'s" if self.messages else "no message"
            raise RecipeError(f"{said}: there is nothing to answer", "give the next question as the prompt")
        yield from self._answered(forget=False)

    def _answered(self, forget: bool) -> Generator[Piece, None, None]:
        self.answer = []
        finished = False
        try:
            while forget and self._is_too_long() and self._forget():
                pass
            for piece in continue_text(
                self._model, self._read(), max_new_tokens=self._max_new_tokens, **self._settings
            ):
                self.answer.append(piece)
                yield piece
            finished = True
        finally:
            text = "".join(piece.text for piece in self.answer)
            if finished or text:
                self.messages.append({"role": "assistant", "content": text})
            else:
                del self.messages[-1:]

    def _read(self) -> list[Message]:
        """The messages that the model reads."""
        return self.messages[: self._num_system] + self.messages[self._first :]

    def _is_too_long(self) -> bool:
        room = min(self._max_new_tokens, self._model.context // 4)
        before, ids = prompt_tokens(self._model, self._read())
        return len(before) + len(ids) + room > self._model.context

    def _forget(self) -> bool:
        """Leave out the oldest turn, up to the next thing that the user said; False where none is left."""
        later = range(self._first + 1, len(self.messages))
        turns = [index for index in later if self.messages[index]["role"] == "user"]
        self._first = turns[0] if turns else self._first
        return bool(turns)


def _num_system(messages: Sequence[Message]) -> int:
    return next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM), len(messages))


def parse_messages(raw: bytes, where: str) -> list[Message]:
    """The messages of one conversation: a JSON list, an object with `messages`, or one message per line.

    Args:
        raw: a file's content.
        where: the file's name, for errors.

    Raises:
        DataError: it is not UTF-8, not JSON, or holds something else; the place is named.
        RecipeError: a text in it is not UTF-8.
    """
    text = decoded(raw, where, DataError)
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deeply to be read") from None
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise DataError(f"{where}: not valid JSON: {error}", _EXAMPLE) from None
        return read_messages([_line(*line, where) for line in _lines(text)], where)
    _require_text(value, where)
    if isinstance(value, dict):
        if value.get("tools"):
            raise DataError(f"{where}: descriptions of tools are not taken here", "say it in a system prompt")
        value = value.get("messages", [value])
    if not isinstance(value, list):
        raise DataError(f"{where}: a JSON {type(value).__name__}, not a list of messages", _EXAMPLE)
    return read_messages(value, where)


def _require_text(value: object, where: str) -> None:
    """Refuse halves of surrogate pairs, which JSON can spell out and no tokenizer can read."""
    require_utf8(json.dumps(value, ensure_ascii=False), f"{where}:")


def _lines(text: str) -> list[tuple[int, str]]:
    # Not `splitlines`: JSON may hold other ends of lines than this one.
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _line(number: int, line: str, where: str) -> object:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}, line {number}: not valid JSON: {error}", _EXAMPLE) from None
    _require_text(value, f"{where}, line {number}")
    if isinstance(value, list) or (isinstance(value, dict) and "messages" in value):
        raise DataError(
            f"{where}, line {number}: a conversation of its own, but one file holds one conversation",
            _EXAMPLE,
        )
    return value
