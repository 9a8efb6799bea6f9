"""Any language model by its path: a run, a checkpoint, a composed model, or one of transformers."""

from __future__ import annotations

from pathlib import Path

from expertise.errors import SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.notes import notes_of
from expertise.skills.bases import BASES, kind_of
from expertise.skills.composed import base_of, load_composed
from expertise.skills.composed_json import is_composed, read_composed


def open_model(path: str | Path, device: str = "cpu", base: str | Path | None = None) -> CausalLM:
    """A language model with its weights and its tokenizer, in evaluation mode.

    Args:
        path: a run, a checkpoint, a folder that `save_composed` wrote, or a folder or a hub id of a causal
            language model of transformers.
        device: "cpu", "cuda", "mps" or "auto".
        base: for a composed model: where its base is now; None: where it was.

    Raises:
        SkillError: there is none, or a composed model's folder is damaged or its base another one.
        RunError: what is there is damaged or cannot be opened.
        MissingExtra: it needs transformers, which is not installed.
    """
    folder = Path(path)
    if not is_composed(folder):
        if base is not None:
            raise SkillError(f"{path} is no composed model: it has no base to be named")
        view: CausalLM = BASES[kind_of(str(path))].view(str(path), device)
        return view
    composed = read_composed(folder)
    kind, where = base_of(folder, composed, base)
    below: CausalLM = BASES[kind].view(where, device)
    model = below.around(load_composed(folder, below.core))
    as_learnt = notes_of(composed).reads_documents
    if as_learnt is not None:
        model.reads_documents = as_learnt
    return model
