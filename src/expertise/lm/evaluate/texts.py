"""On which text a model is looked at: that which is given, or its own, as its folder keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from expertise.errors import ExpertiseError, RecipeError
from expertise.lm.causal import CausalLM
from expertise.lm.data import (
    ALL,
    HELD_OUT,
    DataConfig,
    HeldOut,
    Prepared,
    held_out,
    prepare,
    source_digest,
)
from expertise.lm.data.split import HELD_OUT_SIDES, require_split
from expertise.lm.initial import tokenizer_of
from expertise.lm.load import TOKENIZER
from expertise.lm.notes import notes_of
from expertise.lm.reading import all_for, prepare_for
from expertise.lm.recipe import Recipe
from expertise.lm.train import DATA, data_of, on_new_text, refuse_other_text
from expertise.runs.checkpoint import Checkpoint
from expertise.skills.composed_json import is_composed, read_composed

_NAME_SOME = "name some with --data"
_LOOK_AT_OTHER = "look at the text as it is now: name it with --data"

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """The text that a model is looked at on."""

    text: HeldOut | Prepared
    split: str
    """The side of it: "validation", "test", or "all"."""
    words: str
    """What it is, such as "all of notes.txt"."""
    changed: bool | None = None
    """Of a model's own text: whether the sources give another one now; None: it is given text, or the sources
    cannot be read any more."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a line each."""


def run_text(run: Path, recipe: Recipe, split: str, say: Say, saved: Checkpoint | None) -> Look:
    """A run's own held-out text: what its folder keeps, or, in runs of before that, what the sources give.

    Args:
        run: the run's folder.
        recipe: the run's.
        split: "validation" or "test".
        say: told what is being built, and what has changed.
        saved: the checkpoint that is looked at; None: there is none yet.

    Raises:
        RunError: the kept text is damaged, or there is none and the sources now give other text.
    """
    words = f"the {split} text of {run}"
    own = saved.path if saved is not None and (saved.path / TOKENIZER).is_file() else run
    kept = held_out.kept(run / HELD_OUT, own / TOKENIZER)
    if kept is None:
        prepared = prepare(recipe.read_data, tokenizer_of(recipe, run), say)
        refuse_other_text(run, data_of(run)["digest"], prepared.digest, on_new_text(run))
        return Look(text=prepared, split=split, words=words, changed=False, notes=prepared.notes)
    changed, note = _since(run, kept.digest, recipe.data)
    notes = [note, on_new_text(run)] if changed else [note] if note else []
    for line in notes:
        say(line)
    return Look(text=kept, split=split, words=words, changed=changed, notes=(*kept.notes, *notes))


def given_text(model: CausalLM, path: Path | str, data: DataConfig, split: str | None, say: Say) -> Look:
    """Text that a user names: all of it, or one side of it, divided as training would.

    Args:
        model: reads it.
        path: the model's; a run that was trained on this very text is warned about.
        data: which text.
        split: "all", "validation" or "test"; None: all.
        say: told what is being read.
    """
    require_split(split, given=True)
    if split is not None and split != ALL:
        words = f"the {split} text of {data.places()}"
        return Look(text=prepare_for(model, data, say), split=split, words=words)
    text = all_for(model, data, say)
    for note in text.notes:
        say(note)
    if (Path(path) / DATA).is_file() and data_of(Path(path))["digest"] == text.digest:
        say(
            f"{path} was trained on this text: most of it is not new to the model; "
            "--split validation looks at what is"
        )
    return Look(text=text, split=ALL, words=f"all of {data.places()}", notes=text.notes)


def composed_text(model: CausalLM, path: Path, split: str | None, say: Say) -> Look:
    """The text that a composed model's router was learnt from, held out; of constant weights all of theirs.

    Args:
        model: the composed model.
        path: its folder.
        split: "validation" or "test"; None: validation, or all of a text from which nothing was learnt.
        say: told what is being built, and what has changed.

    Raises:
        RecipeError: no text is known.
        RunError: the folder keeps no text, and the sources now give another one; or what it keeps is damaged.
    """
    if not is_composed(path):
        raise RecipeError(f"{path} does not say on what text it was trained", _NAME_SOME)
    composed = read_composed(path)
    data = notes_of(composed).data
    if data is None:
        raise RecipeError(f"{path} was composed without any text", _NAME_SOME)
    if composed.router is None:
        look = given_text(model, path, data, split, say)
        refuse_other_text(path, composed.data_digest, look.text.digest, _LOOK_AT_OTHER)
        return dataclasses.replace(look, changed=False)
    require_split(split)
    assert model.tokenizer is not None
    side = split or HELD_OUT_SIDES[0]
    words = f"the {side} text of {path}"
    kept = held_out.kept(path / HELD_OUT, model.tokenizer)
    if kept is None:
        prepared = prepare_for(model, data, say)
        refuse_other_text(path, composed.data_digest, prepared.digest, _LOOK_AT_OTHER)
        return Look(text=prepared, split=side, words=words, changed=False, notes=prepared.notes)
    changed, note = _since(path, kept.digest, data)
    if note:
        say(note)
    return Look(
        text=kept, split=side, words=words, changed=changed, notes=(*kept.notes, *([note] * bool(note)))
    )


def own_or_given(
    model: CausalLM, path: Path | str, data: DataConfig | None, split: str | None, say: Say
) -> Look:
    """Given text, or that of a composed model."""
    if data is not None:
        return given_text(model, path, data, split, say)
    return composed_text(model, Path(path), split, say)


def _since(path: Path, before: str, data: DataConfig) -> tuple[bool | None, str]:
    """Whether the sources have changed since a model was trained on them, and a line that says so."""
    kept = f"this is the held-out text that {path} keeps"
    try:
        now = source_digest(data)
    except ExpertiseError as error:
        return None, f"the sources of {path} cannot be read any more ({error.message}); {kept}"
    if now == before:
        return False, ""
    return True, f"the text of {path} has changed since it was trained; {kept}"
