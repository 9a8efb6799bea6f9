"""Kinds of data: what a row of a source must hold, and the document that it becomes."""

from __future__ import annotations

import abc
import json
from collections import Counter
from typing import Any, ClassVar

from expertise.errors import DataError, json_kind
from expertise.lm.data.chat import Chat
from expertise.lm.data.config import DataConfig, SourceTable
from expertise.lm.data.documents import Document, normalise
from expertise.lm.data.messages import read_messages
from expertise.lm.data.readers import Row, text_value
from expertise.lm.data.templates import stated_template


class Kind(abc.ABC):
    """What rows become.

    Args:
        data: what the recipe says about its data.
    """

    records: ClassVar[bool] = True
    """Whether rows are records, which need fields and are never cut apart; else a file may be plain text."""

    chat: Chat | None = None
    """What makes text of them, for conversations."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    @abc.abstractmethod
    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """The fields that are read of each row."""

    @abc.abstractmethod
    def document(self, row: Row, table: SourceTable) -> Document:
        """The document of a row.

        Raises:
            DataError: a field holds something else; file and line are named.
        """

    def optional_fields(self, table: SourceTable) -> tuple[str, ...]:
        """Fields that are read where a row has them."""
        return ()

    def notes(self) -> list[str]:
        """What was passed over in the rows since this was last asked, a line each."""
        return []

    def settings(self) -> list[object]:
        """What the documents depend on beside the sources, for the cache's key."""
        return [self.data.kind]


class Text(Kind):
    """Plain text: all of it is learnt."""

    records = False

    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """The one that holds the text."""
        return (table.field,)

    def document(self, row: Row, table: SourceTable) -> Document:
        """The text as it is."""
        return Document(row.id, table.domain, text_value(row.values[table.field], table.field, row.where))

    def settings(self) -> list[object]:
        """Nothing: what was built before there were other kinds is found again."""
        return []


class Prompt(Kind):
    """A prompt and its completion, one after the other as they are; the completion is learnt."""

    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """Prompt and completion."""
        return table.prompt_field, table.completion_field

    def document(self, row: Row, table: SourceTable) -> Document:
        """Both as one text.

        Raises:
            DataError: one is not text, or the completion is empty.
        """
        prompt, completion = (normalise(text_value(row.values[f], f, row.where)) for f in self.fields(table))
        if not completion.strip():
            raise DataError(f"{row.where}: {table.completion_field!r} is empty: there is nothing to learn")
        text = prompt + completion
        return Document(row.id, table.domain, text, learnt=((len(prompt), len(text)),))


class Messages(Kind):
    """A conversation, made into text by the chat template; what the assistant says is learnt."""

    def __init__(self, data: DataConfig) -> None:
        super().__init__(data)
        self.chat: Chat = Chat(stated_template(data))
        self._ignored: Counter[str] = Counter()

    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """The one that holds the list of messages."""
        return (table.messages_field,)

    def optional_fields(self, table: SourceTable) -> tuple[str, ...]:
        """The one that says which tools the assistant may call, and what must not be lost."""
        return (table.tools_field, *(key for key in _BESIDE if key != table.messages_field))

    def document(self, row: Row, table: SourceTable) -> Document:
        """The conversation as text.

        Raises:
            DataError: it is no list of messages, the assistant says nothing in it, or the template cannot
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

    def notes(self) -> list[str]:
        """Which keys of messages were passed over, and in how many conversations."""
        if not self._ignored:
            return []
        counted = ", ".join(f"{key!r} ({number:,})" for key, number in sorted(self._ignored.items()))
        self._ignored.clear()
        return [f"keys of messages that mean nothing to a chat are ignored (conversations): {counted}"]

    def settings(self) -> list[object]:
        """Also the template, and the version of how a conversation is read."""
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
    """The tools' descriptions; some data sets keep them as JSON within JSON."""
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
