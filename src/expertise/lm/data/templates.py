"""Where a chat template comes from, and what completes it: `bos_token`, `eos_token` and a date.

A complete template sets these at its head, so that its text says everything: a run's recipe, the cache's key
and a checkpoint need nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.errors import RecipeError
from expertise.lm.data.chat import CHATML, Chat
from expertise.lm.data.config import DataConfig, TokenizerConfig
from expertise.lm.data.tokenizer import END_OF_TEXT, end_of_text_name, load_tokenizer
from expertise.runs.files import encoding_hint

if TYPE_CHECKING:
    import tokenizers

TEMPLATE_FILE = "chat_template.jinja"
"""The template beside a tokenizer."""
SETTINGS_FILE = "tokenizer_config.json"
"""What `transformers` keeps beside a tokenizer: names of tokens and, in older folders, the template."""

_NO_DATE = re.compile(r"(?!.*\{%-?\s*set\s+strftime_date\b)", re.DOTALL)


def with_template(data: DataConfig, tokenizer: TokenizerConfig | tokenizers.Tokenizer) -> DataConfig:
    """What a recipe says about its data, with the text of the chat template that it means.

    Args:
        data: of any kind; only conversations have a template.
        tokenizer: given by its path, as it is, or to be trained.

    Raises:
        RecipeError: a file of a template cannot be read, or holds none that can be used.
        DataError: the tokenizer cannot be read.
    """
    if data.kind != "messages":
        return data
    path = Path(tokenizer.path) if isinstance(tokenizer, TokenizerConfig) and tokenizer.path else None
    settings = settings_beside(path.parent) if path else {}
    template = stated_template(data) or template_of(settings)
    given = load_tokenizer(path) if path else tokenizer
    names = {"eos_token": END_OF_TEXT} if isinstance(given, TokenizerConfig) else names_of(given, settings)
    try:
        whole = complete(template, names, datetime.date.today().isoformat())
    except RecipeError as error:
        where = data.template_file or (path.parent if path and not data.template and template else "")
        raise RecipeError(f"{where}: {error.message}" if where else error.message, *error.hints) from None
    return dataclasses.replace(data, template=whole, template_file="")


def with_template_text(
    values: Mapping[str, Any], own: Mapping[str, Any] | None, tokenizer: str = ""
) -> dict[str, Any]:
    """A recipe's tables, of conversations with the text of their chat template in `[data]`.

    Args:
        values: the recipe's tables.
        own: those of the run that is there, which keeps the date that its template was completed with.
        tokenizer: the path of the one that a new run starts with; empty: the one that the recipe names.

    Raises:
        RecipeError: the chat template cannot be read or used.
        DataError: the tokenizer cannot be read.
    """
    result, data = dict(values), values.get("data")
    if not isinstance(data, dict) or data.get("kind") != "messages":
        return result
    stated = {key: data[key] for key in ("template", "template_file") if data.get(key)}
    path = tokenizer or _at(values, "tokenizer", "path")
    if not all(isinstance(value, str) for value in (path, *stated.values())):
        return result  # of a wrong type, which the recipe's own rules tell
    asked = DataConfig(kind="messages", **stated)
    kept = "" if own is None else _at(own, "data", "template")
    is_gone = asked.template_file and not Path(asked.template_file).expanduser().exists()
    if own is None or not (is_gone or kept.endswith(stated_template(asked))):
        kept = with_template(asked, TokenizerConfig(path=path)).template or CHATML
    rest = {key: value for key, value in data.items() if key != "template_file"}
    return {**result, "data": {**rest, "template": kept}}


def stated_template(data: DataConfig) -> str:
    """The template that a recipe states or names by its file; empty: none.

    Raises:
        RecipeError: the file cannot be read, or holds no template.
    """
    if not data.template_file:
        return data.template
    path = Path(data.template_file).expanduser()
    text = _read(path)
    found = template_of(_object(path, text)) if path.suffix == ".json" else text
    if not found.strip():
        raise RecipeError(f"data.template_file: {path} holds no chat template")
    return found


def complete(template: str, names: Mapping[str, str] | None = None, date: str = "") -> str:
    """A template that sets what it reads beside the conversation; one that does already comes back as it is.

    Args:
        template: its text.
        names: what `bos_token` and `eos_token` are; empty where one is not named.
        date: what `strftime_now` gives, as YYYY-MM-DD; empty: the day on which it is asked.

    Raises:
        RecipeError: it is no template.
    """
    if not template:
        return template
    read = Chat(template).names
    known = names or {}
    head: dict[str, str] = {name: known.get(name, "") for name in ("bos_token", "eos_token") if name in read}
    if date and "strftime_now" in template and _NO_DATE.match(template):
        head["strftime_date"] = date
    # The line end after a block is not part of what a template writes.
    lines = [
        f"{{% set {name} = {json.dumps(value, ensure_ascii=False)} %}}\n" for name, value in head.items()
    ]
    return "".join(lines) + template


def names_of(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """What `bos_token` and `eos_token` are to a template, where documents are divided by the end of text.

    A token of beginning that is the end of text is left empty: it stands before each document already.

    Args:
        tokenizer: the one that will encode.
        settings: of the folder that it comes from, as `settings_beside` gives them.
    """
    end = end_of_text_name(tokenizer)
    first = tokenizer.encode("", add_special_tokens=True).tokens[:1]
    bos = _name(settings.get("bos_token")) or "".join(first)
    return {"bos_token": "" if bos == end else bos, "eos_token": _name(settings.get("eos_token")) or end}


def settings_beside(folder: Path) -> dict[str, Any]:
    """What stands beside a tokenizer: names of tokens, and `chat_template`.

    Raises:
        RecipeError: a file that is there cannot be read.
    """
    path = folder / SETTINGS_FILE
    settings = _object(path, _read(path)) if path.is_file() else {}
    if (folder / TEMPLATE_FILE).is_file():
        settings["chat_template"] = _read(folder / TEMPLATE_FILE)
    return settings


def template_of(settings: Mapping[str, Any]) -> str:
    """The chat template in a tokenizer's settings, which may hold several; empty: there is none."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else ""


def _at(values: Mapping[str, Any], table: str, key: str) -> Any:
    inner = values.get(table)
    return inner.get(key, "") if isinstance(inner, dict) else ""


def _name(token: Any) -> str:
    """The text of a token, which older settings wrap in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        # Some editors put a byte-order mark before the text.
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(
            f"cannot read the chat template {path}: {error.strerror or error}",
            f"data.template_file names a {TEMPLATE_FILE} or a {SETTINGS_FILE}",
        ) from None
    except UnicodeDecodeError:
        raise RecipeError(f"the chat template {path} is not UTF-8", encoding_hint(raw)) from None


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{path} is not valid JSON: {error}") from None
    return dict(found) if isinstance(found, dict) else {}
