"""Load a trained model from a run or from one of its checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from expertise.errors import RunError
from expertise.lm.config import ModelConfig
from expertise.lm.data.chat import Chat
from expertise.lm.data.templates import TEMPLATE_FILE, complete
from expertise.lm.data.tokenizer import load_tokenizer
from expertise.lm.model import LanguageModel
from expertise.runs import checkpoint, folder
from expertise.runs import recipe as recipes
from expertise.runs.checkpoint import Checkpoint
from expertise.runs.device import resolve
from expertise.runs.weights import load_weights

CONFIG = "model.json"
"""File of the architecture, beside the weights of a checkpoint."""
TOKENIZER = "tokenizer.json"
CHAT = TEMPLATE_FILE
"""File of the chat template of a model that was trained on messages."""
GENERATION = "generation.json"
"""File of the settings for prompts: `reads_documents`."""


def load(path: str | Path, device: str = "cpu") -> LanguageModel:
    """Load a language model with its weights and, if saved with it, its tokenizer and its chat template.

    Args:
        path: a run (its newest whole checkpoint is taken) or a checkpoint's folder.
        device: "cpu", "cuda", "mps" or "auto".

    Returns:
        The model in evaluation mode.

    Raises:
        RunError: the folder is neither, has no whole checkpoint, or its files do not fit together.
    """
    return load_checkpoint(find_checkpoint(Path(path)), device)


def load_checkpoint(found: Checkpoint, device: str = "cpu") -> LanguageModel:
    """Load the model of a checkpoint that is already open, so that it is verified only once.

    Args:
        found: the checkpoint.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        RunError: the checkpoint's files do not fit together.
    """
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        model = LanguageModel(config_of(found))
    load_weights(model, found, f"its {CONFIG}")
    if (found.path / TOKENIZER).is_file():
        model.tokenizer = load_tokenizer(found.path / TOKENIZER)
    if (found.path / CHAT).is_file():
        model.chat = Chat(complete(found.text(CHAT)))
    if (found.path / GENERATION).is_file():
        model.reads_documents = bool(json.loads(found.text(GENERATION))["reads_documents"])
    return model.to(resolve(device)).eval()


def find_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint at a path, or the newest whole one of the run there.

    Raises:
        RunError: there is neither, or the run has no whole checkpoint.
    """
    if checkpoint.is_checkpoint(path):
        return checkpoint.open_checkpoint(path)
    saved = checkpoint.latest(folder.require_run(path))
    if saved is None:
        raise RunError(
            f"{path} has no checkpoint yet",
            "train it on: `expertise train` writes one at the end, or every train.save_every steps",
        )
    return saved


def config_of(saved: Checkpoint) -> ModelConfig:
    """Return the architecture of a checkpoint.

    Raises:
        RunError: it holds no language model but the state of a skill's training.
    """
    if not (saved.path / CONFIG).is_file():
        raise RunError(f"{saved.path} holds no language model: it has no {CONFIG}")
    return recipes.build(json.loads(saved.text(CONFIG)), ModelConfig)
