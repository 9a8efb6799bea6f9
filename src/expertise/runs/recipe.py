"""Recipes: TOML in and out of plain dataclasses, every mistake one line that names the key."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import os
import tomllib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from expertise.errors import RecipeError, json_kind, nearest
from expertise.registry import Registry
from expertise.runs.files import decoded, expanded, nearest_beside, require_utf8

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Marks a field as "the `Config` of one entry of a registry", chosen by the key `name`.

    Write `router: Annotated[RouterConfig, Choice(ROUTERS)]`. pydantic asks this object for the rule when a
    recipe is read, so that a new entry needs its registry line only.
    """

    registry: Registry
    default: str = ""
    """The entry that is meant where `name` is left out; empty: `name` is needed."""
    preset: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Name of an entry → defaults of its keys in this place, where they differ from the entry's own."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys that older versions wrote in this place, and what each is called now."""

    def config(self, name: str = "", **fields: Any) -> Any:
        """The `Config` of an entry, with the defaults of this place.

        Args:
            name: of the entry; empty: the default one.
            fields: what differs from the defaults.
        """
        name = name or self.default
        return self.registry.config(name)(**self._completed(name, fields))

    def read(self, values: Mapping[str, Any]) -> Any:
        """The `Config` that a table describes.

        Raises:
            RecipeError: as `build`.
        """
        return _validated(values, typing.Annotated[Any, self])

    def __get_pydantic_core_schema__(self, _source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        choices: dict[Any, Any] = {
            name: core_schema.no_info_before_validator_function(
                functools.partial(self._completed, name), handler.generate_schema(self.registry.config(name))
            )
            for name in self.registry
        }
        default = self.default or None

        def tag(values: Any) -> str | None:
            return values.get("name", default) if isinstance(values, dict) else default

        return core_schema.tagged_union_schema(choices, discriminator=tag)

    def _completed(self, name: str, values: Any) -> Any:
        """A table with the keys of today and the defaults of this place."""
        if not isinstance(values, dict):
            return values
        known = {field.name for field in dataclasses.fields(self.registry.config(name))}
        now = {
            old: new
            for old, new in self.renamed.items()
            if old not in known and new in known and new not in values
        }
        given = {now.get(key, key): value for key, value in values.items()}
        return {**copy.deepcopy(dict(self.preset.get(name, {}))), **given}


def shipped() -> dict[str, str]:
    """Name → text of the recipes that come with the package."""
    folder = resources.files("expertise") / "recipes"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return {e.name.removesuffix(".toml"): e.read_text("utf-8") for e in entries if e.name.endswith(".toml")}


def find(name: str) -> tuple[str, str]:
    """A recipe by path or by name.

    Args:
        name: a path to a TOML file, or the name of a shipped recipe.

    Returns:
        Its name (the file's stem) and its text.

    Raises:
        RecipeError: there is no such file and no such recipe, or the file cannot be read.
    """
    path = Path(expanded(name))
    # Not `Path.is_file`, to which a name that is too long for a file is an error.
    if path.suffix != ".toml" and not os.path.isfile(path):
        known = shipped()
        if name in known:
            return name, known[name]
        if os.path.isdir(path):
            raise RecipeError(f"{name} is a folder, not a recipe", *_recipe_in(path))
        raise RecipeError(f"no recipe {name!r}", nearest(name, known), "or give the path of a .toml file")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        near = nearest_beside(path, "*.toml")
        raise RecipeError(
            f"no recipe at {path}", *near, "`expertise recipes` lists the shipped ones"
        ) from None
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
    return path.stem, decoded(raw, f"the recipe {path}", RecipeError)


def _recipe_in(folder: Path) -> list[str]:
    """A hint where somebody names the folder of a run instead of a recipe."""
    if not (folder / "recipe.toml").is_file():
        return ["give the path of a .toml file, or the name of a shipped recipe: `expertise recipes`"]
    return [f"it is a run; to go on with it: {folder / 'recipe.toml'} --out {folder}"]


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML text as a dictionary.

    Raises:
        RecipeError: it is not TOML, or holds nothing.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where} is not valid TOML: {error}") from None
    if not values:
        raise RecipeError(f"{where} is empty", "`expertise recipes demo` prints one to start from")
    return values


def override(values: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply settings of the form `a.b=c`.

    The right side is read as TOML; where it is none, as a string (so quotes are not needed).

    Raises:
        RecipeError: a setting has no `=` or no key, or its path leads through a value.
    """
    values = copy.deepcopy(values)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = [key.strip() for key in path.split(".")]
        if not equals:
            raise RecipeError(
                f"cannot use the setting {setting!r}: it has no value",
                f"write key and value as one word, without spaces: --set {path.strip() or 'key'}=VALUE",
            )
        if not all(keys):
            raise RecipeError(
                f"cannot use the setting {setting!r}: a key is empty", "write it as key.key=value"
            )
        try:
            read = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            read = {}
        # More than one key: the text holds line ends, so it was not meant as TOML.
        value = read["value"] if len(read) == 1 else text
        table = values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise RecipeError(f"cannot set {path!r}: {key!r} is a value, not a table")
        table[keys[-1]] = value
    return values


def build(values: Mapping[str, Any], cls: type[T]) -> T:
    """A validated configuration.

    Args:
        values: nested tables, as TOML gives them.
        cls: a dataclass; nested dataclasses and `Choice` fields are filled from tables.

    Raises:
        RecipeError: an unknown key (the nearest valid one is named), a missing one, a wrong type or value.
    """
    built: T = _validated(values, cls)
    return built


def to_toml(config: Any) -> str:
    """A configuration as TOML that `build` reads back to an equal one; fields that are None are left out."""
    import tomlkit

    return tomlkit.dumps(_without_none(dataclasses.asdict(config)))


def differences(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key → (old, new) for every value in which two configurations differ."""
    return dict(_differences(dataclasses.asdict(before), dataclasses.asdict(after), ""))


def _validated(values: Mapping[str, Any], kind: Any) -> Any:
    from pydantic import ValidationError

    _refuse_what_json_lacks(values, "")
    try:
        # The strict rules of JSON input: no "3" for 3, but a table where a dataclass is wanted.
        return _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _first_mistake(error.errors(), kind) from None


def _adapter(cls: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    for nested in _dataclasses_in(cls):
        # Unknown keys are refused everywhere. Set here, so that the classes need not know pydantic.
        nested.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(cls)


def _dataclasses_in(cls: Any) -> set[Any]:
    found: set[Any] = set()
    pending = [cls]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in found:
            found.add(kind)
            pending += typing.get_type_hints(kind, include_extras=True).values()
        for argument in typing.get_args(kind):
            if isinstance(argument, Choice):
                pending += [argument.registry.config(name) for name in argument.registry]
            else:
                pending.append(argument)
    return found


def _refuse_what_json_lacks(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                require_utf8(key, f"the key {path}." if path else "the key")
            _refuse_what_json_lacks(inner, f"{path}.{_shown(key)}" if path else _shown(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_what_json_lacks(inner, f"{path}.{index}")
    elif isinstance(value, str):
        require_utf8(value, f"{path}:")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{path} must be a finite number, not {value}")
    elif not isinstance(value, int | float | None):
        raise RecipeError(f"{path} is a date or a time, which no key takes: {value}", "put it in quotes")


def _shown(key: Any) -> str:
    """A key on one line."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def _first_mistake(errors: list[Any], cls: Any) -> RecipeError:
    found = [(error, *_locate(error["loc"], cls)) for error in errors]
    # Of a union every branch complains; the one that came deepest is the one that was meant.
    found = [entry for entry in found if not any(p.startswith(f"{entry[1]}.") for _, p, _ in found)]
    # An unknown key is reported first: a missing one beside it is often the same mistake.
    error, path, known = min(found, key=lambda entry: entry[0]["type"] != "unexpected_keyword_argument")
    kind, others = error["type"], len({p for _, p, _ in found}) - 1
    hints = [f"{others} more mistakes after this one"] if others > 1 else []
    if kind == "unexpected_keyword_argument":
        return RecipeError(f"unknown key {path}", nearest(str(error["loc"][-1]), known), *hints)
    if kind == "missing":
        return RecipeError(f"the recipe lacks {path}", *hints)
    if kind == "union_tag_not_found" and isinstance(error.get("input"), dict):
        return RecipeError(f"the recipe lacks {path}.name", *hints)
    if kind == "union_tag_not_found":
        return RecipeError(f"{path}: a table with a name is needed, not {_shown_value(error)}", *hints)
    if kind == "union_tag_invalid":
        names = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return RecipeError(
            f"{path}.name: unknown {error['ctx']['tag']!r}", nearest(error["ctx"]["tag"], names)
        )
    wanted, hint = _wanted(error, path)
    return RecipeError(f"{path}: {wanted}, not {_shown_value(error)}", *hint, *hints)


_WANTED = {
    "string_type": "input should be text",
    "int_type": "input should be a whole number",
    "int_from_float": "input should be a whole number",
    "float_type": "input should be a number",
    "bool_type": "input should be true or false",
    "list_type": "input should be a list, as [a, b]",
    "dict_type": "input should be a table",
    "dataclass_type": "input should be a table",
    "greater_than_equal": "input should be at least {ge}",
    "greater_than": "input should be greater than {gt}",
    "less_than_equal": "input should be at most {le}",
    "less_than": "input should be less than {lt}",
}
"""Kinds of mistakes that pydantic finds, in the words of TOML instead of Python's."""


def _wanted(error: Any, path: str) -> tuple[str, list[str]]:
    """What should stand where a wrong value does, and how to write this one where it was meant right."""
    kind, got, limits = error["type"], error.get("input"), error.get("ctx", {})
    if kind not in _WANTED:
        return error["msg"][0].lower() + error["msg"][1:], []
    hints = []
    if kind == "string_type" and isinstance(got, bool | int | float):
        hints.append(f'put it in quotes: {path} = "{_as_toml(got)}", or --set \'{path}="{_as_toml(got)}"\'')
    elif isinstance(got, str) and kind in ("int_type", "float_type", "bool_type") and _is_toml(got):
        hints.append(f"write it without quotes: {path} = {got}")
    elif kind in ("int_type", "int_from_float") and isinstance(got, float) and got.is_integer():
        hints.append(f"write it without a point: {path} = {int(got)}")
    elif kind == "list_type" and isinstance(got, str | bool | int | float):
        hints.append(f"write one as {path} = [{json.dumps(got, ensure_ascii=False)}]")
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in limits.items()}
    return _WANTED[kind].format(**bounds), hints


def _shown_value(error: Any) -> str:
    """What stood there; of a table or a list, which may be long, its kind alone."""
    got = error.get("input")
    return json_kind(got) if got is None or isinstance(got, dict | list) else _as_toml(got)


def shown(value: Any) -> str:
    """A value as a message shows it: as TOML writes it, but for what is not there at all."""
    if isinstance(value, dict):
        inner = ", ".join(f"{_shown(key)} = {shown(each)}" for key, each in value.items() if each is not None)
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return "nothing" if value is None else _as_toml(value)


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _is_toml(text: str) -> bool:
    """Whether a text would be a number, true or false if it stood without quotes."""
    try:
        return isinstance(tomllib.loads(f"value = {text}")["value"], bool | int | float)
    except tomllib.TOMLDecodeError:
        return False


def _locate(loc: tuple[Any, ...], cls: Any) -> tuple[str, list[str]]:
    """The dotted path of a mistake as the user wrote it, and the keys that are valid where it stands."""
    path: list[str] = []
    known: list[str] = []
    hint: Any = cls
    for key in loc:
        hint, choice = _unwrapped(hint)
        if choice is not None:
            # pydantic names the chosen variant in its path; in a recipe no such level exists.
            hint = choice.registry.config(str(key))
        elif dataclasses.is_dataclass(hint):
            known = [field.name for field in dataclasses.fields(hint)]
            path.append(_shown(key))
            hint = typing.get_type_hints(hint, include_extras=True).get(str(key))
        elif typing.get_origin(hint) is list:
            path.append(str(key))
            hint = typing.get_args(hint)[0]
        else:
            # Nor does the level that names a union's branch.
            lists = [kind for kind in typing.get_args(hint) if typing.get_origin(kind) is list]
            hint = lists[0] if lists and str(key).startswith("list") else None
    return ".".join(path), known


def _unwrapped(hint: Any) -> tuple[Any, Choice | None]:
    """An annotation without `Annotated` and `| None`, and its `Choice`."""
    while True:
        arguments = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if typing.get_origin(hint) is typing.Annotated:
            choice = next((mark for mark in hint.__metadata__ if isinstance(mark, Choice)), None)
            if choice is not None:
                return hint, choice
            hint = hint.__origin__
        elif len(arguments) == 1 and len(typing.get_args(hint)) == 2:
            hint = arguments[0]
        else:
            return hint, None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in value]
    return value


def _differences(before: Any, after: Any, path: str) -> Iterable[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif before != after:
        yield path, (before, after)
