"""Kinds of data: the fields of a row, and the document that it becomes."""

from __future__ import annotations

import abc
import json
from collections import Counter
from typing import Any, ClassVar

from typing_extensions import override

from expertise.errors import DataError, json_kind
from expertise.lm.data.chat import Chat
from expertise.lm.data.config import DataConfig, SourceTable
from expertise.lm.data.documents import Document, normalise
from expertise.lm.data.messages import read_messages
from expertise.lm.data.readers import Row, text_value
from expertise.lm.data.templates import stated_template


class Kind(abc.ABC):
    """Base class of the kinds of data: converts rows to documents.

    Args:
        data: the recipe's table `[data]`.
    """

    records: ClassVar[bool] = True
    """True if rows are records, which need fields and are never cut; else a file may be plain text."""

    chat: Chat | None = None
    """The chat template that renders rows, for conversations."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    @abc.abstractmethod
    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """Return the fields that are read of each row."""

    @abc.abstractmethod
    def document(self, row: Row, table: SourceTable) -> Document:
        """Return the document of a row.

        Raises:
            DataError: a field holds another type; file and line are named.
        """

    def optional_fields(self, table: SourceTable) -> tuple[str, ...]:
        """Return the fields that are read if a row has them."""
        return ()

    def notes(self) -> list[str]:
        """Return notes on parts of rows that were ignored since the last call, one line each."""
        return []

    def settings(self) -> list[object]:
        """Return everything besides the sources that the documents depend on, for the cache key."""
        return [self.data.kind]


class Text(Kind):
    """Plain text: all of it is learnt."""

    records = False

    @override
    def fields(self, table: SourceTable) -> tuple[str, ...]:
        return (table.field,)

    @override
    def document(self, row: Row, table: SourceTable) -> Document:
        return Document(row.id, table.domain, text_value(row.values[table.field], table.field, row.where))

    def settings(self) -> list[object]:
        """Return nothing: older caches, made before there were other kinds, stay valid."""
        return []


class Prompt(Kind):
    """A prompt followed by its completion, both unchanged; only the completion is learnt."""

    @override
    def fields(self, table: SourceTable) -> tuple[str, ...]:
        return table.prompt_field, table.completion_field

    def document(self, row: Row, table: SourceTable) -> Document:
        """Join prompt and completion; only the completion is learnt.

        Raises:
            DataError: a field is not text, or the completion is empty.
        """
        prompt, completion = (normalise(text_value(row.values[f], f, row.where)) for f in self.fields(table))
        if not completion.strip():
            raise DataError(f"{row.where}: {table.completion_field!r} is empty: there is nothing to learn")
        text = prompt + completion
        return Document(row.id, table.domain, text, learnt=((len(prompt), len(text)),))


class Messages(Kind):
    """A conversation, rendered by the chat template; only the assistant's messages are learnt."""

    def __init__(self, data: DataConfig) -> None:
        super().__init__(data)
        self.chat: Chat = Chat(stated_template(data))
        self._ignored: Counter[str] = Counter()

    @override
    def fields(self, table: SourceTable) -> tuple[str, ...]:
        return (table.messages_field,)

    @override
    def optional_fields(self, table: SourceTable) -> tuple[str, ...]:
        """The one that says which tools the assistant may call, and what must not be lost."""
        return (table.tools_field, *(key for key in _BESIDE if key != table.messages_field))

    def document(self, row: Row, table: SourceTable) -> Document:
        """Render the conversation.

        Raises:
            DataError: the field is no list of messages, the assistant says nothing, or the template cannot
                write all of it.
        """
        value = row.values[table.messages_field]
        if not isinstance(value, list):
            raise DataError(
                f"{row.where}: {table.messages_field!r} is {json_kind(value)}, not a list of messages",
                'write it as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
            )
        _refuse_beside(row, (table.messages_field, table.tools_field))
        messages = read_messages(value, row.where)
        if not any(message["role"] == "assistant" for message in messages):
            raise DataError(f"{row.where}: no message of the assistant: there is nothing to learn")
        tools = _tools(row.values.get(table.tools_field), table.tools_field, row.where)
        found = self.chat.render(messages, row.where, tools)
        if not any(end > start for start, end in found.learnt):
            raise DataError(
                f"{row.where}: no turn of the assistant is to be learnt: there is nothing to learn",
                "'weight': 0, 'train': false or the template's {% generation %} leave out all of them",
            )
        self._ignored.update(found.ignored)
        return Document(row.id, table.domain, found.text, learnt=found.learnt, written=found.written)

    @override
    def notes(self) -> list[str]:
        if not self._ignored:
            return []
        counted = ", ".join(f"{key!r} ({number:,})" for key, number in sorted(self._ignored.items()))
        self._ignored.clear()
        return [f"keys of messages that mean nothing to a chat are ignored (conversations): {counted}"]

    @override
    def settings(self) -> list[object]:
        source = self.data.source
        tools = sorted({table.tools_field for table in source} if isinstance(source, list) else set())
        return [*super().settings(), self.chat.template, _READING, *tools]


_READING = 3
"""Version 1 took markers by a pattern, and passed over keys of messages; version 2 learnt what opens a turn
where its white space was not that of the generation prompt."""

_BESIDE = {
    "system": 'make it the first message: {"role": "system", "content": …}',
    "functions": 'name the field in the source\'s table: tools_field = "functions"',
    "weight": "leave such rows out, or write 'weight': 0 into the messages that are only context",
    "train": "leave such rows out, or write 'train': false into the messages that are only context",
}
"""Keys beside a list of messages that change what is said or learnt, and what to do about each."""


def _refuse_beside(row: Row, read: tuple[str, ...]) -> None:
    """Refuse a row that says something about its conversation which nothing here reads."""
    for key, hint in _BESIDE.items():
        value = row.values.get(key)
        says = value is False or value == 0 if key in ("weight", "train") else value
        if key not in read and value is not None and says:
            raise DataError(f"{row.where}: {key!r} stands beside the messages, where it is not read", hint)


def _tools(value: object, field: str, where: str) -> list[Any]:
    """Return the tools' descriptions; some data sets keep them as JSON within JSON."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: {field!r} is not valid JSON: {error}") from None
    if not value:
        return []
    if not isinstance(value, list):
        raise DataError(f"{where}: {field!r} is {json_kind(value)}, not a list of tools")
    return value
