"""Any language model by its path: a run, a checkpoint, a composed model, or one of transformers."""

from __future__ import annotations

from pathlib import Path

from expertise.lm.causal import CausalLM


def open_model(path: str | Path, device: str = "cpu", base: str | Path | None = None) -> CausalLM:
    """A language model with its weights and its tokenizer.

    Args:
        path: a run, a checkpoint, a folder that `save_composed` wrote, or a folder or a hub id of a causal
            language model of transformers.
        device: "cpu", "cuda", "mps" or "auto".
        base: for a composed model: where its base is now.
    """
    raise NotImplementedError
