"""Messages of a conversation: what a list of them must hold, and which of a message's keys mean something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expertise.errors import DataError, json_kind, nearest
from expertise.lm.data.documents import normalise
from expertise.lm.data.readers import text_value

Message = Mapping[str, Any]
"""`role`, `content` (text, or parts of text) and what else a chat template may read; `train` false: the turn
is context, not learnt."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which an assistant's reasoning goes; a template may read any of them."""

MEANINGFUL = frozenset(
    (
        *("name", "tool_calls", "tool_responses", "function_call", "tools", "documents"),
        *("refusal", "prefix", "recipient", "channel", "eot", "end_turn", "citations"),
        *("image", "images", "audio", "video", "videos"),
        *REASONING,
    )
)
"""Keys that change what a message says or how it is learnt: refused where the template does not read them.

A `tool_call_id` is none of them: templates that do not write it go by the order of calls and results.
"""

_OF_LEARNING = ("loss", "mask", "train", "weight", "learn", "supervis")
"""Parts of keys by which trainers say what is learnt: `loss_mask`, `train_on_turn`, `is_masked`."""


def is_meaningful(key: str) -> bool:
    """Whether a key of a message changes what it says or how it is learnt."""
    return key in MEANINGFUL or any(part in key.lower() for part in _OF_LEARNING)


_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
}
"""Names of speakers in other forms of conversations."""

_FORM = 'write it as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'


def read_messages(value: object, where: str) -> list[Message]:
    """A conversation as a chat template takes it.

    Keys without a value (null, an empty list) are left out, `from` and `value` are read as `role` and
    `content`, `weight` and `train` become `train`.

    Args:
        value: a list of objects, as JSON gives it.
        where: where it stands, for the error.

    Raises:
        DataError: it is no list of messages; the message is named by its number.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: {json_kind(value)}, not a list of messages", _FORM)
    return [_message(one, f"{where}, message {number}") for number, one in enumerate(value, start=1)]


def is_learnt(message: Message) -> bool:
    """Whether the assistant says it and nothing keeps it from being learnt."""
    return message["role"] == "assistant" and message.get("train", True) is not False


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {json_kind(value)}, not an object with role and content")
    message = {
        key: _clean(inner) for key, inner in value.items() if inner is not None and inner not in ([], {})
    }
    if "role" not in value and "from" in value:
        message["role"] = message.pop("from", None)
        if "content" not in value and "value" in value:
            message["content"] = message.pop("value", None)
    if "role" not in message:
        raise DataError(f"{where}: no field 'role'", nearest("role", value))
    role = text_value(message["role"], "role", where)
    message["role"] = role = _SPEAKERS.get(role, role)
    if role not in ROLES:
        raise DataError(f"{where}: unknown role {role!r}", nearest(role, ROLES))
    learnt = _learnt(message, where)
    says_else = any(message.get(key) for key in ("tool_calls", "function_call", *REASONING))
    if "content" not in message and not (role == "assistant" and says_else):
        raise DataError(f"{where}: no field 'content'", nearest("content", value))
    if "content" in message:
        message["content"] = _content(message["content"], where)
        if role == "assistant" and learnt and not says_else and not text_of(message).strip():
            raise DataError(f"{where}: the assistant's content is empty: there is nothing to learn")
    return message if learnt else {**message, "train": False}


def text_of(message: Message) -> str:
    """A message's content as one text."""
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return text_value(content, "content", where)
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{where}: 'content' holds a part that is no text: {kind!r}",
                'a part is {"type": "text", "text": "…"}; a language model reads nothing else',
            )
    return content


def _learnt(message: dict[str, Any], where: str) -> bool:
    """Whether `weight` and `train`, which are taken out, let a turn be learnt."""
    said = {key: message.pop(key) for key in ("weight", "train") if key in message}
    allowed: dict[str, tuple[Any, ...]] = {"weight": (0, 1), "train": (False, True)}
    for key, given in said.items():
        if isinstance(given, bool) != (key == "train") or given not in allowed[key]:
            raise DataError(
                f"{where}: {key!r} is {given!r}",
                "weight is 0 or 1, train is true or false: 0 and false keep a turn from being learnt",
            )
    if len({bool(given) for given in said.values()}) > 1:
        raise DataError(f"{where}: 'weight' and 'train' do not say the same: {said}")
    return all(said.values())


def _clean(value: Any) -> Any:
    """A value of JSON whose texts can be written as UTF-8."""
    if isinstance(value, str):
        return normalise(value)
    if isinstance(value, dict):
        return {normalise(key): _clean(inner) for key, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value
