"""Chat templates: from a list of messages to text, who wrote what in it, and where the assistant speaks."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expertise.errors import DataError, RecipeError
from expertise.lm.data.messages import REASONING, ROLES, Message, is_learnt, is_meaningful, text_of

if TYPE_CHECKING:
    from expertise.lm.data.traced import Record, Traced

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of recipes that name none."""

Spans = tuple[tuple[int, int], ...]
"""Places in a text, in characters: where each begins and ends."""

# A noncharacter, which no text should hold: of a message that holds it alone is asked where it comes out.
_SAMPLE = "\ufdd1"
# Pieces of what opens a turn, such as `<|im_start|>`, `assistant` and a line end.
_PIECES = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\s+|[^\s<\[]+|.", re.DOTALL)
_MARKER = re.compile(r"\s*(<[^<>\s]*>|\[[^\[\]\s]*\])")
_HOW_TO_LEARN = "'weight': 0 or 'train': false keep a turn from being learnt"


@dataclass(frozen=True)
class Rendered:
    """Messages as text; places are counted in characters."""

    text: str
    learnt: Spans
    """Where the assistant speaks, from its first word to the end of the marker that ends its turn."""
    written: Spans
    """What the template wrote; all else is from the messages."""
    ignored: tuple[str, ...] = ()
    """Keys of messages that the template does not read and that mean nothing to a chat."""


class Chat:
    """A jinja2 chat template as models are published with, run in jinja2's sandbox.

    It is given `messages`, `tools` where there are some, and `add_generation_prompt`, and may use what
    `transformers` offers to templates: loop controls, `{% generation %}`, `raise_exception`, `strftime_now`.
    `bos_token` and `eos_token` are empty unless the template sets them (see `templates.py`).

    Args:
        template: its text; empty: ChatML.

    Raises:
        RecipeError: it is no template, or leaves out what a user or an assistant says.
    """

    def __init__(self, template: str = "") -> None:
        from jinja2 import TemplateSyntaxError, meta, nodes  # only for conversations

        from expertise.lm.data.traced import TracingEnvironment

        self.template = template or CHATML
        environment = TracingEnvironment()
        try:
            tree = environment.parse(self.template)
            self._compiled = environment.from_string(self.template)
        except TemplateSyntaxError as error:
            raise RecipeError(f"data.template, line {error.lineno}: {error.message}") from None
        self.names: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
        """Variables that the template reads and does not set."""
        self._has_generation = environment.has_generation
        self._literals = [node.data for node in tree.find_all(nodes.TemplateData)]
        self._literals += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        try:
            self._set_form_of_content()
        except DataError as error:
            raise RecipeError(error.message) from None

    end: str
    """The marker that ends a turn, such as `<|im_end|>`; empty: the end of text does."""

    @functools.cached_property
    def own(self) -> str:
        """What the template writes of its own, as far as its source and some conversations show."""
        return "\0".join([*self._literals, *self._samples()])

    @property
    def reads_tools(self) -> bool:
        """Whether the template can say which tools there are."""
        return "tools" in self.names

    def render(
        self, messages: Sequence[Message], where: str = "data.template", tools: Sequence[Any] = ()
    ) -> Rendered:
        """Messages as text.

        Args:
            messages: in order, as `read_messages` gives them.
            where: where they stand, for the error.
            tools: descriptions of what the assistant may call.

        Raises:
            DataError: the template refuses them, leaves something out, or does not show where the assistant
                speaks.
        """
        records = self._records(messages)
        whole = self._raw(records, where, tools=tools)
        speakers = whole.numbers
        self._refuse_lost(messages, records, speakers, where, tools)
        if self._has_generation:
            learnt = self._marked(messages, whole, speakers)
        else:
            learnt = tuple(
                self._turn(messages, number, whole, speakers, where, tools)
                for number, message in enumerate(messages, start=1)
                if is_learnt(message)
            )
        return Rendered(whole.plain, learnt, _runs(n == 0 for n in speakers), _ignored(records))

    def prompt(
        self, messages: Sequence[Message], where: str = "the prompt", tools: Sequence[Any] = ()
    ) -> Rendered:
        """Messages as text up to where the assistant is to speak; nothing in it is learnt.

        Raises:
            DataError: the template refuses them, or leaves something out.
        """
        records = self._records(messages)
        raw = self._raw(records, where, True, tools)
        speakers = raw.numbers
        self._refuse_lost(messages, records, speakers, where, tools)
        return Rendered(raw.plain, (), _runs(n == 0 for n in speakers), _ignored(records))

    def _set_form_of_content(self) -> None:
        """Find how the template takes content (as text or as parts), and what ends a turn."""
        sample: list[Message] = [{"role": role, "content": _SAMPLE} for role in ("user", "assistant")]
        in_parts: list[Message] = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} for message in sample
        ]
        self._takes_text = self._takes_parts = True
        text, parts = self._around(sample), self._around(in_parts)
        self._takes_text = isinstance(text, list) and len(text) == 3
        self._takes_parts = isinstance(parts, list) and len(parts) == 3
        if self._takes_text and parts != text:
            self._takes_parts = False
        pieces = text if self._takes_text or not self._takes_parts else parts
        if isinstance(pieces, DataError):
            raise pieces
        if len(pieces) != 3:
            raise RecipeError(
                "data.template must write the content of a user's and of an assistant's message once each",
                f"of the two it writes {len(pieces) - 1}",
            )
        self.end = pieces[2].rstrip() or pieces[2]
        self._after_end = len(pieces[2]) - len(self.end)

    def _around(self, messages: Sequence[Message]) -> list[str] | DataError:
        """What the template writes around the sample words of messages, or why it cannot."""
        try:
            return self._raw(self._records(messages), "data.template").plain.split(_SAMPLE)
        except DataError as error:
            return error

    def _samples(self) -> Iterable[str]:
        """What the template writes around made-up conversations of several shapes."""
        call = {"type": "function", "function": {"name": _SAMPLE, "arguments": {_SAMPLE: _SAMPLE}}}
        said: dict[str, Message] = {role: {"role": role, "content": _SAMPLE} for role in ROLES}
        user, answer = said["user"], said["assistant"]
        reasons = {**answer, **dict.fromkeys(REASONING, _SAMPLE)}
        calls = {"role": "assistant", "content": _SAMPLE, "tool_calls": [call]}
        tool = {**said["tool"], "name": _SAMPLE, "tool_call_id": _SAMPLE}
        shapes: list[list[Message]] = [
            *([one] for one in said.values()),
            [user, answer],
            [said["system"], user, reasons],
            [said["developer"], user],
            [user, answer, user, reasons],
            [user, calls, tool, answer],
            [user, {**calls, "content": ""}, tool],
        ]
        for messages, prompt, tools in itertools.product(shapes, (False, True), ([], [call])):
            with contextlib.suppress(DataError):
                text = self._raw(self._records(messages), "", prompt, tools)
                yield "\0".join(
                    text.plain[start:end] for start, end in _runs(not number for number in text.numbers)
                )

    @functools.cached_property
    def _no_content(self) -> str | None:
        """The content of a turn that only calls tools: empty, or null where the template asks for that."""
        from expertise.lm.data.traced import Record

        for content, given in itertools.product(("", None), ("{}", {})):
            call = {"type": "function", "function": {"name": _SAMPLE, "arguments": given}}
            turn = Record({"role": "assistant", "content": content, "tool_calls": [call]})
            with contextlib.suppress(DataError):
                text = self._raw([Record({"role": "user", "content": "?"}), turn], "").plain
                if _SAMPLE in text and "None" not in text:
                    return content
        return ""

    def _records(self, messages: Sequence[Message]) -> list[Record]:
        """Messages as the template is given them, with each one's number as the label of its text."""
        from expertise.lm.data.traced import Record, label_of, traced

        records = []
        for number, message in enumerate(messages, start=1):
            given = {key: inner for key, inner in message.items() if key != "train"}
            if "content" in given and (not self._takes_parts or isinstance(given["content"], str)):
                text = text_of(message)
                given["content"] = text if self._takes_text else [{"type": "text", "text": text}]
            if given["role"] == "assistant" and "tool_calls" in given and not given.get("content"):
                given["content"] = self._no_content
            reasons = next((given[key] for key in REASONING if key in given), None)
            if reasons is not None:
                given |= {key: given.get(key, reasons) for key in REASONING}
            label = label_of(number)
            # A role is one of a few words; the template may make its markers of it.
            values = {key: traced(inner, label) for key, inner in given.items()} | {"role": given["role"]}
            records.append(Record(values))
        return records

    def _raw(
        self,
        records: Sequence[Record],
        where: str,
        prompt: bool = False,
        tools: Sequence[Any] = (),
    ) -> Traced:
        """The template's output."""
        from expertise.lm.data.traced import label_of, traced

        given: dict[str, Any] = {"messages": list(records), "add_generation_prompt": prompt}
        given |= {"bos_token": "", "eos_token": ""}
        if tools:
            given["tools"] = traced(list(tools), label_of(_TOOLS))
        try:
            return self._compiled.render(given)  # type: ignore[return-value]
        except Exception as error:  # a template is a program: anything may go wrong in it
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{where}: the chat template fails: {reason}") from None

    def _refuse_lost(
        self,
        messages: Sequence[Message],
        records: Sequence[Record],
        speakers: Sequence[int],
        where: str,
        tools: Sequence[Any],
    ) -> None:
        """Refuse a conversation of which the template leaves something out."""
        heard = set(speakers)
        for number, (message, record) in enumerate(zip(messages, records, strict=True), start=1):
            unread = set(record.unread())
            if not unread.issuperset(REASONING):  # one was read
                unread -= set(REASONING)
            if lost := sorted(key for key in unread & message.keys() if is_meaningful(key)):
                raise DataError(
                    f"{where}, message {number}: the chat template does not read {lost[0]!r}",
                    "use a template that does, or take the key out of the data",
                    _HOW_TO_LEARN,
                )
            if number not in heard and text_of(message).strip():
                raise DataError(
                    f"{where}, message {number}: the chat template leaves out what the "
                    f"{message['role']} says",
                    "use a template that writes it, or take the message out of the data",
                )
        if tools and not self.reads_tools:
            raise DataError(f"{where}: the chat template does not read the tools", "use a template that does")

    def _marked(self, messages: Sequence[Message], whole: Traced, speakers: Sequence[int]) -> Spans:
        """What stands within `{% generation %}`, but for turns that are not to be learnt."""
        kept = []
        for start, end in _runs(whole.generated):
            inside = next((n for n in speakers[start:end] if n), 0)
            owner = inside or next((n for n in reversed(speakers[:start]) if n), 0)
            message = messages[owner - 1] if 0 < owner <= len(messages) else None
            if message is None or message.get("train", True) is not False:
                kept.append((start, end))
        return tuple(kept)

    def _turn(
        self,
        messages: Sequence[Message],
        number: int,
        whole: Traced,
        speakers: list[int],
        where: str,
        tools: Sequence[Any],
    ) -> tuple[int, int]:
        """Where the assistant's message `number` stands, from its first word to the end of its marker."""
        records = self._records(messages)
        own = [place for place, speaker in enumerate(speakers) if speaker == number]
        first, last = (own[0], own[-1] + 1) if own else (len(whole), 0)
        start = end = -1
        with contextlib.suppress(DataError):  # some templates refuse a conversation that ends with a user
            asked = self._raw(records[: number - 1], where, True, tools)
            start = len(asked) if whole.startswith(asked) and len(asked) <= first else -1
            if start < 0:
                said = _end_of_said(asked.numbers)
                before = self._raw(records[: number - 1], where, tools=tools)
                opens = asked.startswith(before) and len(asked) > len(before)
                closing = max(0, len(before) - said) if opens else 0
                at = _end_of_said(speakers[:first])
                start = _after(asked.plain[said:], whole.plain, at, first, closing)
        with contextlib.suppress(DataError):
            turn = self._raw(records[:number], where, tools=tools).plain
            end = len(turn) - self._after_end if whole.startswith(turn) else -1
        if own and start < 0:
            start = first
        if own and end < last:
            following = next((p for p in range(last, len(speakers)) if speakers[p]), len(whole))
            found = whole.plain.find(self.end, last, following)
            end = found + len(self.end) if found >= 0 else self._end_within(records, whole, speakers, last)
        alone = all(speaker in (0, number) for speaker in speakers[max(start, 0) : end])
        if not (alone and 0 <= start <= first and start <= end and last <= end):
            raise DataError(
                f"{where}, message {number}: it cannot be said where the assistant speaks in what the chat "
                "template writes",
                "use a template that marks it with {% generation %}, or that only adds what follows",
            )
        return start, end

    def _end_within(
        self, records: Sequence[Record], whole: Traced, speakers: Sequence[int], last: int
    ) -> int:
        """Where the marker ends that closes a turn which other turns follow, if a user's turn has it, too.

        Some templates close the last turn of a conversation otherwise (`<|return|>`, or the end of text).
        """
        users = {number for number, record in enumerate(records, start=1) if record["role"] == "user"}
        after_user = max((p + 1 for p, number in enumerate(speakers[:last]) if number in users), default=0)
        marker, other = (_MARKER.match(whole.plain, place) for place in (last, after_user))
        return marker.end() if marker and other and marker[1] == other[1] else -1


_TOOLS = 1 << 16
"""The number under which the tools' descriptions are labelled, beyond that of any message."""


def _runs(flags: Iterable[Any]) -> Spans:
    """Where flags hold, as few spans as there can be."""
    found, at = [], 0
    for holds, run in itertools.groupby(map(bool, flags)):
        size = sum(1 for _ in run)
        if holds:
            found.append((at, at + size))
        at += size
    return tuple(found)


def _end_of_said(speakers: Sequence[int]) -> int:
    """Where the last character that is not the template's ends."""
    return next((place + 1 for place in range(len(speakers) - 1, -1, -1) if speakers[place]), 0)


def _after(opening: str, text: str, start: int, stop: int, closing: int) -> int:
    """Where a turn's opening, or as much of it as stands there, ends in the text between two places.

    How much white space stands before and between its words may differ. The first `closing` characters only
    close the turn before; where nothing but these stands there, it is not known where the opening ends.
    """
    words = [found for found in _PIECES.finditer(opening) if not found[0].isspace()]
    least = sum(word.start() < closing for word in words)
    for number in range(len(words), least, -1):
        form = r"\s*".join(["", *(re.escape(word[0]) for word in words[:number])])
        if found := re.compile(form).match(text, start, stop):
            end, space = found.end(), words[number - 1].end()
            while end < stop and text[end].isspace() and opening[space : space + 1] == text[end]:
                end, space = end + 1, space + 1
            return end
    return -1


def _ignored(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(sorted({key for record in records for key in record.unread() if not is_meaningful(key)}))
