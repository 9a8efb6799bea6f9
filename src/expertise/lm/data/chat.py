"""Chat templates: from a list of messages to text, and where in it the assistant speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expertise.errors import DataError, RecipeError

Message = Mapping[str, str]
"""`role` and `content`."""

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template of recipes that name none."""

_MARKER = re.compile(r"<\|[^\s|<>]+\|>|<｜[^\s｜<>]+｜>|<(?:start|end)_of_turn>|</?s>")
# Noncharacters, which no text should hold: the one breaks a marker that a message spells out, the other is
# a message of which is asked where it comes out.
_APART, _SAMPLE = "\ufdd0", "\ufdd1"


@dataclass(frozen=True)
class Rendered:
    """Messages as text; places are counted in characters."""

    text: str
    learnt: tuple[tuple[int, int], ...]
    """Where the assistant speaks, from its first word to the end of the marker that ends its turn."""
    markers: tuple[tuple[int, int], ...]
    """Where the template's markers stand; one that a message spells out is none."""


class Chat:
    """A jinja2 chat template as models are published with, run in jinja2's sandbox.

    It is given `messages` and `add_generation_prompt`; `bos_token` and `eos_token` are empty, because the
    tokenizer's end of text divides documents. Messages that follow must not change how earlier ones are
    written: else it could not be said where the assistant speaks.

    Args:
        template: its text; empty: ChatML.

    Raises:
        RecipeError: it is no template, or leaves out what a user or an assistant says.
    """

    def __init__(self, template: str = "") -> None:
        from jinja2 import TemplateSyntaxError  # only for conversations
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.template = template or CHATML
        # As in `transformers`, for which published templates are written.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        try:
            self._compiled = environment.from_string(self.template)
        except TemplateSyntaxError as error:
            raise RecipeError(f"data.template, line {error.lineno}: {error.message}") from None
        names = sorted(set(_MARKER.findall(self.template)), key=len, reverse=True)
        self._markers = re.compile("|".join(map(re.escape, names)) or "(?!)")
        try:
            self.end = self._end_of_turn()
        except DataError as error:
            raise RecipeError(error.message) from None

    end: str
    """The marker that ends a turn, such as `<|im_end|>`; empty: the end of text does."""

    def render(self, messages: Sequence[Message], where: str = "data.template") -> Rendered:
        """Messages as text.

        Args:
            messages: in order, each with `role` and `content`.
            where: where they stand, for the error.

        Raises:
            DataError: the template refuses them, or writes earlier messages anew when more follow.
        """
        whole = self._raw(messages, where)
        learnt = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._raw(messages[:index], where, prompt=True)
            turn = self._raw(messages[: index + 1], where)
            if not (whole.startswith(turn) and turn.startswith(start)):
                raise DataError(
                    f"{where}, message {index + 1}: the template writes it otherwise when more follow",
                    "so it cannot be said where the assistant speaks; use a template that only adds",
                )
            learnt.append((len(start), len(turn) - self._after_end))
        return _without_apart(whole, learnt, [match.span() for match in self._markers.finditer(whole)])

    def prompt(self, messages: Sequence[Message], where: str = "the prompt") -> Rendered:
        """Messages as text up to where the assistant is to speak; nothing in it is learnt.

        Raises:
            DataError: the template refuses them.
        """
        raw = self._raw(messages, where, prompt=True)
        return _without_apart(raw, [], [match.span() for match in self._markers.finditer(raw)])

    def _end_of_turn(self) -> str:
        """What the template writes after the assistant's words, without white space after a marker."""
        sample = [{"role": "user", "content": _SAMPLE}, {"role": "assistant", "content": _SAMPLE}]
        pieces = self._raw(sample, "data.template").split(_SAMPLE)
        if len(pieces) != 3:
            raise RecipeError(
                "data.template must write the content of a user's and of an assistant's message once each",
                f"of the two it writes {len(pieces) - 1}",
            )
        end = pieces[2].rstrip() or pieces[2]
        self._after_end = len(pieces[2]) - len(end)
        return end

    def _raw(self, messages: Sequence[Message], where: str, prompt: bool = False) -> str:
        """The template's output, in which `_APART` breaks every marker that a message spells out."""
        safe = [{**message, "content": self._apart(message["content"])} for message in messages]
        try:
            return self._compiled.render(
                messages=safe, add_generation_prompt=prompt, bos_token="", eos_token=""
            )
        except Exception as error:  # a template is a program: anything may go wrong in it
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{where}: the chat template fails: {reason}") from None

    def _apart(self, content: str) -> str:
        content = content.replace(_APART, "\ufffd")
        return self._markers.sub(lambda match: match[0][0] + _APART + match[0][1:], content)


def _without_apart(
    raw: str, learnt: Sequence[tuple[int, int]], markers: Sequence[tuple[int, int]]
) -> Rendered:
    def moved(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        if _APART not in raw:
            return tuple(spans)
        return tuple(
            (start - raw.count(_APART, 0, start), end - raw.count(_APART, 0, end)) for start, end in spans
        )

    return Rendered(raw.replace(_APART, ""), moved(learnt), moved(markers))


def _raise(message: str) -> None:
    raise ValueError(message)
