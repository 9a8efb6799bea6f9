"""The kinds of language models that skills can adapt: our runs, and models of transformers."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from expertise.errors import MissingExtra, RecipeError, RunError
from expertise.lm.data.chat import Chat
from expertise.lm.data.templates import SETTINGS_FILE, TEMPLATE_FILE, complete, names_of, template_of
from expertise.lm.data.tokenizer import end_of_text, load_tokenizer, tokenizer_from, vocab_size
from expertise.lm.foreign import Foreign
from expertise.lm.load import load
from expertise.lm.model import LanguageModel
from expertise.runs import checkpoint, folder
from expertise.runs.device import resolve
from expertise.runs.progress import say
from expertise.skills.bases import may_be_hub_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Run:
    """A run of ours (its newest whole checkpoint), or a checkpoint."""

    @staticmethod
    def can_open(path: str) -> bool:
        """Return True if the path is a run or a checkpoint."""
        return folder.is_run(Path(path)) or checkpoint.is_checkpoint(Path(path))

    @staticmethod
    def view(path: str, device: str) -> LanguageModel:
        """Load the model with the interface for learning, evaluation and generation."""
        return load(path, device)

    @staticmethod
    def open(path: str, device: str) -> nn.Module:
        """Load the module itself."""
        return Run.view(path, device)


class Transformers:
    """A folder or a hub id of a causal language model of transformers.

    Weights are read from safetensors only, and always in float32: so a skill is learnt in float32, and a base
    has one fingerprint. Code that comes with a model is never run.
    """

    @staticmethod
    def can_open(path: str) -> bool:
        """Return True for a folder with a `config.json`, and for a name like a hub id, not like a path."""
        where = Path(path)
        if where.exists():
            return (where / "config.json").is_file()
        return may_be_hub_id(path)

    @staticmethod
    def view(path: str, device: str) -> Foreign:
        """Load the model with the interface for learning, evaluation and generation.

        Raises:
            MissingExtra: transformers is not installed.
            RunError: there is no such model, or it cannot be opened.
        """
        transformers = _library(path)
        local = Path(path).exists()
        where = resolve(device)
        try:
            with _quiet(transformers):
                core, found = transformers.AutoModelForCausalLM.from_pretrained(
                    path,
                    local_files_only=local,
                    dtype="float32",
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except Exception as error:  # a damaged file can raise anything
            raise RunError(f"cannot open {path} as a causal language model: {_line(error)}") from None
        if missing := sorted(found["missing_keys"]):
            raise RunError(f"cannot open {path} as a causal language model: it has no {missing[0]}")
        tokenizer, own = _tokenizer(path, local)
        rows = core.get_input_embeddings().weight.shape[0]
        if tokenizer is not None:
            end_of_text(tokenizer)  # adds one if there is none that we know
            if vocab_size(tokenizer) > rows:
                raise RunError(
                    f"the tokenizer of {path} has {vocab_size(tokenizer)} tokens, the model knows {rows}",
                    "a token that ends a text must be among them, such as <|endoftext|>, </s> or <eos>",
                )
        return Foreign(core.to(where).eval(), tokenizer, _chat(path, own, tokenizer), _first(tokenizer))

    @staticmethod
    def open(path: str, device: str) -> nn.Module:
        """Load the module itself."""
        return Transformers.view(path, device).core


def _library(path: str) -> Any:
    """Import the package transformers, an optional dependency."""
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise MissingExtra("hf", f"the model {path}") from None


def _tokenizer(path: str, local: bool) -> tuple[Tokenizer | None, dict[str, Any]]:
    """Return the tokenizer (None: there is none) with `tokenizer_config.json` and `chat_template.jinja`."""
    transformers = _library(path)

    def find(name: str) -> Path | None:
        found = transformers.utils.cached_file(
            path,
            name,
            local_files_only=local,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    settings: dict[str, Any] = {}
    if file := find(SETTINGS_FILE):
        try:
            settings = dict(json.loads(file.read_text("utf-8")))
        except ValueError as error:
            raise RunError(f"damaged {file}: {error}") from None
    if file := find(TEMPLATE_FILE):
        settings["chat_template"] = file.read_text("utf-8")
    if file := find("tokenizer.json"):
        return load_tokenizer(file), settings
    if not settings:
        return None, settings
    try:
        with _quiet(transformers):
            made = transformers.AutoTokenizer.from_pretrained(path, local_files_only=local)
        return tokenizer_from(made.backend_tokenizer.to_str()), settings
    except Exception as error:  # some need packages that are not installed, others files that are missing
        say(f"{path} has no tokenizer that can be used: {_line(error)}")
        return None, settings


def _chat(path: str, settings: dict[str, Any], tokenizer: Tokenizer | None) -> Chat | None:
    template = template_of(settings)
    if not template:
        return None
    names = {} if tokenizer is None else names_of(tokenizer, settings)
    first = _first(tokenizer)
    if tokenizer is not None and first is not None and names["bos_token"] == tokenizer.id_to_token(first):
        names["bos_token"] = ""  # `Foreign` puts it before every text
    try:
        return Chat(complete(template, names))
    except RecipeError as error:
        say(f"the chat template of {path} is passed over: {error.message}")
        return None


def _first(tokenizer: Tokenizer | None) -> int | None:
    """Return the id that a tokenizer puts before every text by default."""
    added = [] if tokenizer is None else tokenizer.encode("", add_special_tokens=True).ids
    return int(added[0]) if added else None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Turn off progress bars, which would mix with our own lines."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
