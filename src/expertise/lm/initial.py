"""Starting a run from given weights: `init = "a run or a checkpoint"` in a recipe.

A new run takes weights, tokenizer and architecture from there. What a recipe leaves out of `[model]` and
`[tokenizer]` is filled in, so that the recipe which the run keeps says everything; what it states must be the
same. Once a run has a checkpoint of its own it no longer needs the folder that it started from.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expertise.errors import RecipeError, RunError
from expertise.lm.config import ModelConfig
from expertise.lm.data import TokenizerConfig, load_tokenizer
from expertise.lm.data.config import SMALLEST_VOCABULARY
from expertise.lm.data.templates import with_template_text
from expertise.lm.data.tokenizer import vocab_size
from expertise.lm.load import CONFIG, TOKENIZER, config_of, find_checkpoint
from expertise.runs import checkpoint, folder
from expertise.runs import recipe as recipes
from expertise.runs.checkpoint import Checkpoint
from expertise.runs.files import sha256_of
from expertise.runs.weights import load_weights

if TYPE_CHECKING:
    import tokenizers

    from expertise.lm.model import LanguageModel
    from expertise.lm.recipe import Recipe

_FILLED = ("model", "tokenizer")


@dataclasses.dataclass(frozen=True)
class Initial:
    """What a run starts from."""

    path: str
    """As the recipe names it."""
    saved: Checkpoint
    config: ModelConfig
    tokenizer: tokenizers.Tokenizer

    @property
    def tokenizer_path(self) -> Path:
        """The checkpoint's tokenizer."""
        return self.saved.path / TOKENIZER

    def load_into(self, model: LanguageModel) -> None:
        """Put the weights into a model.

        Raises:
            RunError: a parameter is missing, not known, or of another shape; both shapes are named.
        """
        load_weights(model, self.saved, f"the model's {CONFIG}")

    def facts(self) -> dict[str, Any]:
        """Which weights these are: `path`, `checkpoint`, `step`, `sha256` of `model.safetensors`."""
        return {
            "path": self.path,
            "checkpoint": str(self.saved.path),
            "step": self.saved.step,
            "sha256": sha256_of(self.saved.path / "model.safetensors"),
        }


def open_initial(path: str) -> Initial:
    """A run (its newest whole checkpoint) or a checkpoint to start from.

    Raises:
        RunError: it is neither, holds nothing whole, or has no tokenizer.
    """
    try:
        saved = find_checkpoint(Path(path).expanduser())
    except RunError as error:
        raise RunError(f"init: {error.message}", *error.hints) from None
    if not (saved.path / TOKENIZER).is_file():
        raise RunError(
            f"init: {saved.path} has no {TOKENIZER}",
            "its weights mean nothing without the tokenizer that they were trained with",
        )
    return Initial(path, saved, config_of(saved), load_tokenizer(saved.path / TOKENIZER))


def filled_in(values: Mapping[str, Any], run: Path | None) -> dict[str, Any]:
    """A recipe's tables with what `init` gives (the rest of `[model]`, and `[tokenizer]`), and the template.

    Args:
        values: as TOML gives them; without `init` and without conversations they come back as they are.
        run: where the run is or will be; one that is there gives its own, and `init` is not looked at.

    Raises:
        RunError: there is nothing to start from.
        RecipeError: the chat template cannot be read or used.
    """
    result = copy.deepcopy(dict(values))
    path = result.get("init")
    initial, own = None, None
    if run is not None and folder.is_run(run):
        own = recipes.parse((run / folder.RECIPE).read_text("utf-8"), str(run / folder.RECIPE))
    if path and isinstance(path, str):
        given = own
        if given is None:
            initial = open_initial(path)
            model = {k: v for k, v in dataclasses.asdict(initial.config).items() if v is not None}
            given = {"model": model, "tokenizer": {"vocab_size": _asked_size(initial)}}
        for key in _FILLED:
            if key in given:
                result[key] = _merged(given[key], result.get(key, {}))
    return with_template_text(result, own, str(initial.tokenizer_path) if initial else "")


def initial_of(recipe: Recipe, run: Path) -> Initial | None:
    """What a run still starts from: nothing, when its recipe names none or it has a checkpoint of its own.

    Raises:
        RunError: there is nothing to start from.
        RecipeError: the recipe's model or tokenizer is another one; the key is named with both values.
    """
    if not recipe.init or checkpoint.any_saved(run):
        return None
    initial = open_initial(recipe.init)
    for key, (theirs, ours) in recipes.differences(initial.config, recipe.model).items():
        if not (key == "vocab_size" and ours == 0):
            raise RecipeError(
                f"model.{key} is {ours!r}, but init ({recipe.init}) has {theirs!r}",
                "leave [model] out to take all of it from init",
            )
    _refuse_other_tokenizer(recipe.tokenizer, initial)
    return initial


def tokenizer_of(recipe: Recipe, run: Path, initial: Initial | None = None) -> TokenizerConfig:
    """Where a run's tokenizer comes from: what the recipe says, but for runs with `init` theirs.

    Args:
        recipe: the run's.
        run: its folder; once it has a tokenizer, that is the one.
        initial: what it starts from.
    """
    if not recipe.init:
        return recipe.tokenizer
    if (run / TOKENIZER).is_file():
        return TokenizerConfig(path=str(run / TOKENIZER))
    saved = initial.saved if initial else checkpoint.latest(run)
    if saved is None:
        raise RunError(f"{run} has no {TOKENIZER} and no checkpoint")
    return TokenizerConfig(path=str(saved.path / TOKENIZER))


def _refuse_other_tokenizer(asked: TokenizerConfig, initial: Initial) -> None:
    hint = "leave [tokenizer] out: weights go with the tokenizer that they were trained with"
    if asked.path and load_tokenizer(Path(asked.path)).to_str() != initial.tokenizer.to_str():
        raise RecipeError(
            f"tokenizer.path ({asked.path}) is not the tokenizer of init ({initial.path})", hint
        )
    if asked.vocab_size not in (TokenizerConfig().vocab_size, _asked_size(initial)):
        size = vocab_size(initial.tokenizer)
        raise RecipeError(
            f"tokenizer.vocab_size is {asked.vocab_size}, but init ({initial.path}) has {size} tokens",
            hint,
        )


def _asked_size(initial: Initial) -> int:
    """The size of its vocabulary, as a recipe may ask for it."""
    return max(SMALLEST_VOCABULARY, vocab_size(initial.tokenizer))


def _merged(given: Any, own: Any) -> Any:
    """What a recipe states over what is given; a table of another name is the recipe's alone."""
    if not (isinstance(given, dict) and isinstance(own, dict)):
        return own
    if "name" in own and own["name"] != given.get("name", own["name"]):
        return own
    return {**given, **{key: _merged(given[key], own[key]) if key in given else own[key] for key in own}}
