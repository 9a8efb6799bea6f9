"""Text that remembers who wrote each of its characters, and the jinja2 environment that keeps it so.

A chat template mixes text of its own with text from a conversation, and may cut, strip and join both. Which
of the result's characters came from the conversation decides what is a control token and what is learnt.
"""

# ruff: noqa: D102, N802 (methods of str, dict and jinja2, which document them)

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

from jinja2 import Undefined, nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

DATE = "strftime_date"
"""The variable of a template that holds the date, as YYYY-MM-DD, which `strftime_now` gives."""

_TEMPLATE, _GENERATED = "\0", 1
_HOLDERS = 0x100000
"""Characters from here on (private use) stand for text while a template formats it."""


def label_of(number: int) -> str:
    """The label of characters that message `number` (from 1) gave; the template's own have number 0."""
    return chr(2 * number)


def number_of(label: str) -> int:
    """The number of the message that gave a character with this label; 0: the template wrote it."""
    return ord(label) >> 1


class Traced(str):
    """Text with a label for each character.

    Methods that take pieces out of a text give their labels too. What any other method makes has the first
    label of what it was made from, if a conversation gave any of it: it never counts as the template's.
    """

    labels: str

    def __new__(cls, text: str, labels: str) -> Traced:
        """Text and as many labels, or one label for all of it."""
        self = str.__new__(cls, text)
        self.labels = labels if len(labels) == len(text) else labels * len(text)
        return self

    @property
    def plain(self) -> str:
        """The text alone."""
        return str.__str__(self)

    @property
    def numbers(self) -> list[int]:
        """For each character the number of the message that gave it; 0: the template wrote it."""
        return [number_of(label) for label in self.labels]

    @property
    def generated(self) -> list[bool]:
        """For each character whether it stands within `{% generation %}`."""
        return [bool(ord(label) & _GENERATED) for label in self.labels]

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return Traced(str.__mul__(self, times), self.labels * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return Traced(str.__getitem__(self, key), self.labels[key])

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> str:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> str:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self[: len(self) - len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(str.rsplit(self, sep, maxsplit))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._found(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = self._found(str.partition(self, sep))
        return first, middle, last

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        first, middle, last = self._found(str.rpartition(self, sep))
        return first, middle, last

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return Traced(str.replace(self, old, new, count), first_label((self, new)))
        pieces = self.split(old, count)
        return joined([piece for kept in pieces for piece in (new, kept)][1:])

    def _found(self, pieces: Iterable[str]) -> list[str]:
        """Pieces of this text, in their order, with their labels."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            at = self.index(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece)
        return found


_EXACT = frozenset(name for name, made in vars(Traced).items() if callable(made) and not name.startswith("_"))
"""Methods of `Traced` that keep each character's own label."""


class Record(dict[str, Any]):
    """An object of a conversation that notes which of its keys a template reads."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._seen: set[object] = set()

    def unread(self) -> list[str]:
        """Keys that were not asked for."""
        return [key for key in self._all() if key not in self._seen]

    def _all(self) -> list[str]:
        return list(super().keys())

    def __getitem__(self, key: str) -> Any:
        self._seen.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._seen.add(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._seen.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self._seen.update(self._all())
        return super().__iter__()

    def keys(self) -> Any:
        self._seen.update(self._all())
        return super().keys()

    def values(self) -> Any:
        self._seen.update(self._all())
        return super().values()

    def items(self) -> Any:
        self._seen.update(self._all())
        return super().items()


def traced(value: Any, label: str) -> Any:
    """A value of JSON in which every text has this label."""
    if isinstance(value, str):
        return Traced(value, label)
    if isinstance(value, Mapping):
        return {Traced(key, label): traced(inner, label) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [traced(inner, label) for inner in value]
    return value


def joined(parts: Iterable[Any]) -> Traced:
    """Parts one after the other, each with its labels."""
    texts = [_shown(part) for part in parts]
    labels = [text.labels if isinstance(text, Traced) else _TEMPLATE * len(text) for text in texts]
    return Traced("".join(texts), "".join(labels))


def first_label(value: Any) -> str:
    """The first label in a value that is not the template's, else the template's."""
    if isinstance(value, Traced):
        return next((label for label in value.labels if number_of(label)), _TEMPLATE)
    if isinstance(value, Mapping):
        value = [inner for pair in value.items() for inner in pair]
    if isinstance(value, list | tuple):
        return next((label for inner in value if number_of(label := first_label(inner))), _TEMPLATE)
    return _TEMPLATE


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox as `transformers` sets it up for chat templates, in which text keeps its labels."""

    class _Generator(CodeGenerator):
        """Writes `a ~ b` as a call of `joined`."""

        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.concat((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    code_generator_class = _Generator
    concat = staticmethod(joined)
    intercepted_binops = frozenset("%")

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=_shown
        )
        own = {"join": _join, "replace": _replace, "tojson": _to_json, "format": _format}
        self.filters = {name: _labelling(function) for name, function in self.filters.items()} | own
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = _strftime_now

    has_generation = False
    """Whether a template that was parsed here has `{% generation %}`."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox gives it; a text's methods keep labels."""
        return _method(obj, attribute, super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As the sandbox gives it; a text's methods keep labels."""
        return _method(obj, argument, super().getitem(obj, argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left % right`."""
        if not isinstance(left, str):
            return super().call_binop(context, operator, left, right)
        if isinstance(right, Mapping):
            return _formatted(lambda **named: str.__mod__(left, named), left, (), right)
        given = right if isinstance(right, tuple) else (right,)
        return _formatted(lambda *values: str.__mod__(left, values), left, given, {})


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: what stands between is what a model is to learn."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of `_mark`."""
        self.environment.has_generation = True  # type: ignore[attr-defined]
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = joined((caller(),))
        return Traced(text, "".join(chr(ord(label) | _GENERATED) for label in text.labels))


def _shown(value: Any) -> Any:
    """A value as a template writes it out."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return str(value)
    label = first_label(value)
    return Traced(str(value), label) if number_of(label) else str(value)


def _method(obj: Any, name: Any, found: Any) -> Any:
    if not isinstance(obj, str) or not callable(found) or isinstance(found, Undefined):
        return found
    if name in _EXACT:
        return getattr(joined((obj,)), name)
    if name == "join":
        return lambda parts: _join_with(obj, parts)
    if name in ("format", "format_map"):
        return lambda *given, **named: _formatted(found, obj, given, named)
    return _labelling(functools.partial(found))


def _labelling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; a text that it makes from a conversation's is labelled as such."""
    owner = getattr(getattr(function, "func", None), "__self__", None)

    def labelled(*given: Any, **named: Any) -> Any:
        made = function(*given, **named)
        if isinstance(made, Traced) or not isinstance(made, str):
            return made
        label = first_label([owner, *given, *named.values()])
        return Traced(made, label) if number_of(label) else made

    # What jinja2 says about its filters, such as that one wants the environment, is an attribute of theirs.
    vars(labelled).update(getattr(function, "__dict__", {}))
    return labelled


def _formatted(make: Callable[..., str], form: str, given: Iterable[Any], named: Mapping[str, Any]) -> str:
    """A form filled in, where text of a conversation keeps its labels."""
    held: dict[str, str] = {}

    def hold(value: Any) -> Any:
        if not number_of(first_label(value)):
            return value
        character = chr(_HOLDERS + len(held))
        held[character] = _shown(value)
        return character

    made = make(*map(hold, given), **{key: hold(value) for key, value in named.items()})
    pieces = re.split(f"([{''.join(held)}])", made) if held else [made]
    label = first_label(form)
    return joined(
        [held.get(piece) or (Traced(piece, label) if number_of(label) else piece) for piece in pieces]
    )


def _join_with(between: str, parts: Iterable[Any]) -> str:
    return joined([piece for part in parts for piece in (between, part)][1:])


@pass_eval_context
def _join(context: nodes.EvalContext, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    """The filter `join`."""
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return _join_with(d, value)


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    """The filter `replace`."""
    return joined((value,)).replace(_shown(old), _shown(new), -1 if count is None else count)


def _format(value: str, *given: Any, **named: Any) -> str:
    """The filter `format`."""
    return _formatted(lambda *v, **n: str.__mod__(value, n or v), value, given, named)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`, which escapes no HTML."""
    made = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return Traced(made, first_label(value))


def _raise(message: str) -> None:
    raise ValueError(message)


@pass_context
def _strftime_now(context: Context, form: str) -> str:
    """The template's date in this form, else today's."""
    date = context.get(DATE)
    day = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    return day.strftime(form)
