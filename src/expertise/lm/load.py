"""A trained model from a run or from one of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from expertise.errors import RunError
from expertise.lm.config import ModelConfig
from expertise.lm.data.tokenizer import load_tokenizer
from expertise.lm.model import LanguageModel
from expertise.runs import checkpoint, folder
from expertise.runs import recipe as recipes
from expertise.runs.device import resolve

CONFIG = "model.json"
"""The architecture, beside the weights of a checkpoint."""
TOKENIZER = "tokenizer.json"


def load(path: str | Path, device: str = "cpu") -> LanguageModel:
    """A language model with its weights and, where there is one, its tokenizer.

    Args:
        path: a run (its newest whole checkpoint is taken) or a checkpoint's folder.
        device: "cpu", "cuda", "mps" or "auto".

    Returns:
        The model in evaluation mode.

    Raises:
        RunError: the folder is neither, holds no whole checkpoint, or what it holds does not fit together.
    """
    path = Path(path)
    if checkpoint.is_checkpoint(path):
        found = checkpoint.open_checkpoint(path)
    else:
        saved = checkpoint.latest(folder.require_run(path))
        if saved is None:
            raise RunError(f"{path} has no checkpoint yet", "train.save_every sets how often one is written")
        found = saved
    config = recipes.build(json.loads(found.text(CONFIG)), ModelConfig)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
        model = LanguageModel(config)
    try:
        model.load_state_dict(found.tensors("model"))
    except RuntimeError as error:
        first = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()
        raise RunError(f"the weights in {found.path} do not fit its {CONFIG}: {first}") from None
    if (found.path / TOKENIZER).is_file():
        model.tokenizer = load_tokenizer(found.path / TOKENIZER)
    return model.to(resolve(device)).eval()
