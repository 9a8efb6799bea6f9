"""Writes recipe-keys.md and policy-recipe-keys.md from the sentences under the fields of recipes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAD = """# Keys of {what}

Written by `make docs` from the sentence under each field; do not edit. {where}
A key without a default must be given.
"""
REFUSED = {"model": ("a context vector",), "alpha": ("token ids",)}
"""Table → what a router there cannot have as its context."""
TAIL = "*: a run may go on with another value of this key.\n"


def pages() -> dict[str, str]:
    """File → text."""
    return {"recipe-keys.md": page(), "policy-recipe-keys.md": policy_page()}


def page() -> str:
    """Recipes of language models."""
    from expertise.lm.recipe import Recipe, may_change

    where = "How recipes work:\n[guide/02-recipes.md](guide/02-recipes.md)."
    head = HEAD.format(what="a recipe", where=where)
    return "\n".join([head, *tables(Recipe, may_change), TAIL])


def policy_page() -> str:
    """Recipes of `policy learn`, one for each kind, and of `policy collect`."""
    from expertise.policy.data.collect import CollectConfig
    from expertise.policy.learn import RECIPES
    from expertise.runs.config import may_change

    parts = [
        HEAD.format(
            what="policies' recipes",
            where="How policies are learnt:\n[guide/09-policies.md](guide/09-policies.md).",
        ),
        *(f'- [kind = "{kind}"](#kind--{kind})' for kind in RECIPES),
        "- [policy collect](#policy-collect)\n",
    ]
    for kind, cls in RECIPES.items():
        parts += [f'# kind = "{kind}"\n\n{first_paragraph(cls)}\n', *tables(cls, may_change)]
    about = first_paragraph(CollectConfig)
    parts += [f"# policy collect\n\n{about}\n", *tables(CollectConfig, lambda key: False)]
    return "\n".join([*parts, TAIL])


def tables(cls: Any, may_change: Any) -> Iterator[str]:
    """A section for each table of a recipe."""
    for title, part, about, preset in sections(cls, ""):
        yield f"## {title}\n\n{about}\n\n{table(title, part, may_change, preset)}"


def sections(cls: Any, path: str) -> Iterator[tuple[str, Any, str, Mapping[str, Any]]]:
    """Every table of a recipe, in order: dotted path, class, a sentence about it, defaults of its own."""
    from expertise.runs.recipe import Choice

    sentences = sentences_of(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    if path:
        yield path, cls, first_paragraph(cls), {}
    elif not all(nested(hint) for hint in hints.values()):
        yield "Outside any table", cls, "These stand at the top of a recipe.", {}
    for field in dataclasses.fields(cls):
        here = f"{path}.{field.name}" if path else field.name
        for hint in flat(hints[field.name]):
            if is_class(hint):
                list_of = typing.get_origin(hints[field.name]) is list or "list[" in str(hints[field.name])
                yield from sections(hint, f"{here} (each)" if list_of else here)
            elif isinstance(hint, Choice):
                for name, entry in hint.registry.items():
                    if getattr(entry, "context_kind", None) in REFUSED.get(here.partition(".")[0], ()):
                        continue  # refused in such a recipe
                    doc, preset = first_paragraph(entry), hint.preset.get(name, {})
                    about = f"{sentences[field.name]} {doc}"
                    yield f'{here} with name = "{name}"', entry.Config, about, preset


def table(title: str, cls: Any, may_change: Any, preset: Mapping[str, Any]) -> str:
    """The keys of one class, with the defaults that hold in this place."""
    sentences, hints = sentences_of(cls), typing.get_type_hints(cls, include_extras=True)
    path = title.split(" ")[0]
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    # What the class says itself comes before what it shares with others.
    for field in sorted(dataclasses.fields(cls), key=lambda f: f.name not in vars(cls)["__annotations__"]):
        if nested(hints[field.name]):
            continue
        mark = "*" if may_change(f"{path}.{field.name}") else ""
        needed = field.name == "name" and title.startswith("model.router")  # parts have one that is meant
        shown = shown_type(hints[field.name])
        cells = (
            f"`{field.name}`{mark}",
            shown,
            "" if needed else as_toml(preset[field.name]) if field.name in preset else default(field),
            sentences.get(field.name, ""),
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def sentences_of(cls: Any) -> dict[str, str]:
    """Field → the string under it, of a class and those it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(after.value, ast.Constant)
                found[ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return found


def flat(hint: Any) -> Iterator[Any]:
    """An annotation's parts: classes, literals, marks."""
    if typing.get_origin(hint) is typing.Annotated:
        marks = hint.__metadata__
        yield from marks
        if not any(type(mark).__name__ == "Choice" for mark in marks):
            yield from flat(hint.__origin__)
    elif typing.get_origin(hint) in (list, typing.Union, types.UnionType):
        for argument in typing.get_args(hint):
            yield from flat(argument)
    else:
        yield hint


def nested(hint: Any) -> bool:
    """Whether a field is a table of its own, with its own section."""
    kinds = [part for part in flat(hint) if part is not type(None)]
    return all(is_class(kind) or type(kind).__name__ == "Choice" for kind in kinds)


def is_class(hint: Any) -> bool:
    """Whether an annotation is a dataclass; marks such as `Ge(1)` are instances of some."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def shown_type(hint: Any) -> str:
    """An annotation as a reader of TOML sees it."""
    kind = typing.get_origin(hint)
    if kind is typing.Annotated:
        limits = ", ".join(filter(None, (limit(mark) for mark in hint.__metadata__)))
        return f"{shown_type(hint.__origin__)} {limits}".strip()
    if kind in (typing.Union, types.UnionType):
        return " or ".join(shown_type(a) for a in typing.get_args(hint) if a is not type(None))
    if kind is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in typing.get_args(hint))
    if kind is list:
        (inner,) = typing.get_args(hint)
        return "tables" if dataclasses.is_dataclass(inner) else f"list of {shown_type(inner)}"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(hint, str(hint))


def limit(mark: Any) -> str:
    """A mark such as `Ge(1)` as a sign."""
    signs = {"Ge": ("≥", "ge"), "Gt": (">", "gt"), "Le": ("≤", "le"), "Lt": ("<", "lt")}
    sign = signs.get(type(mark).__name__)
    if sign is None:
        return ""
    bound = getattr(mark, sign[1])
    return f"{sign[0]} {'2^63' if bound == 2**63 else bound}"


def default(field: Any) -> str:
    """A field's default as TOML."""
    made = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    if value is dataclasses.MISSING:
        return ""
    empty = value is None or value == "" or value == [] or dataclasses.is_dataclass(value)
    return "none" if empty else as_toml(value)


def as_toml(value: Any) -> str:
    """A value as TOML."""
    return f"`{value!r}`".replace("'", '"').replace("True", "true").replace("False", "false")


def first_paragraph(cls: Any) -> str:
    """What a class says of itself first, on one line."""
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r"\s+", " ", text)


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        Path(__file__).with_name(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
