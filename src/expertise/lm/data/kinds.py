"""Kinds of data: what a row of a source must hold, and the document that it becomes."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from expertise.errors import DataError, json_kind, nearest
from expertise.lm.data.chat import Chat, Message
from expertise.lm.data.config import DataConfig, SourceTable
from expertise.lm.data.documents import Document, normalise
from expertise.lm.data.readers import Row, text_value

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak in a conversation."""


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
        self.chat: Chat = Chat(data.template)

    def fields(self, table: SourceTable) -> tuple[str, ...]:
        """The one that holds the list of messages."""
        return (table.messages_field,)

    def document(self, row: Row, table: SourceTable) -> Document:
        """The conversation as text.

        Raises:
            DataError: it is no list of messages, or the assistant says nothing in it.
        """
        messages = _messages(row.values[table.messages_field], table.messages_field, row.where)
        found = self.chat.render(messages, row.where)
        return Document(row.id, table.domain, found.text, learnt=found.learnt, markers=found.markers)

    def settings(self) -> list[object]:
        """Also the template."""
        return [*super().settings(), self.chat.template]


def _messages(value: object, field: str, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(
            f"{where}: {field!r} is {json_kind(value)}, not a list of messages",
            'write it as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )
    messages = [_message(one, f"{where}, message {number}") for number, one in enumerate(value, start=1)]
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where}: no message of the assistant: there is nothing to learn")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {json_kind(value)}, not an object with role and content")
    for key in ("role", "content"):
        if key not in value:
            raise DataError(f"{where}: no field {key!r}", nearest(key, value))
    role, content = (text_value(value[key], key, where) for key in ("role", "content"))
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {role!r}", nearest(role, ROLES))
    if role == "assistant" and not content.strip():
        raise DataError(f"{where}: the assistant's content is empty: there is nothing to learn")
    return {"role": role, "content": normalise(content)}
