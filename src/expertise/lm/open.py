"""Open any language model by its path: a run, a checkpoint, a composed model, or one of transformers."""

from __future__ import annotations

from pathlib import Path

from expertise.errors import SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.notes import notes_of
from expertise.skills.bases import BASES, kind_of
from expertise.skills.composed import base_of, load_composed
from expertise.skills.composed_json import is_composed, read_composed


def open_model(path: str | Path, device: str = "cpu", base: str | Path | None = None) -> CausalLM:
    """Open a language model with its weights and its tokenizer, in evaluation mode.

    Args:
        path: a run, a checkpoint, a folder that `save_composed` wrote, or a folder or a hub id of a causal
            language model of transformers.
        device: "cpu", "cuda", "mps" or "auto".
        base: for a composed model: the present path of its base; None: the path that it was composed with.

    Raises:
        SkillError: there is no such model, or a composed model's folder is damaged or its base another one.
        RunError: the model is damaged or cannot be opened.
        MissingExtra: it needs transformers, which is not installed.
    """
    folder = Path(path)
    if not is_composed(folder):
        if base is not None:
            raise SkillError(f"{path} is no composed model: it has no base to be named")
        return _viewed(kind_of(str(path)), str(path), device)
    composed = read_composed(folder)
    kind, where = base_of(folder, composed, base)
    below = _viewed(kind, where, device)
    model = below.around(load_composed(folder, below.core))
    as_learnt = notes_of(composed).reads_documents
    if as_learnt is not None:
        model.reads_documents = as_learnt
    return model


def _viewed(kind: str, path: str, device: str) -> CausalLM:
    entry = BASES[kind]
    if not hasattr(entry, "view"):
        raise SkillError(f"{path} is no language model, but of the kind {kind!r}")
    view: CausalLM = entry.view(path, device)
    return view
