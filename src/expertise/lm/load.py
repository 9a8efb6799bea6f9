"""A trained model from a run or from one of its checkpoints."""

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
"""The architecture, beside the weights of a checkpoint."""
TOKENIZER = "tokenizer.json"
CHAT = TEMPLATE_FILE
"""The chat template of a model that was trained on messages."""
GENERATION = "generation.json"
"""How a model is to be asked: `reads_documents`."""


def load(path: str | Path, device: str = "cpu") -> LanguageModel:
    """A language model with its weights and, where there are such, its tokenizer and its chat template.

    Args:
        path: a run (its newest whole checkpoint is taken) or a checkpoint's folder.
        device: "cpu", "cuda", "mps" or "auto".

    Returns:
        The model in evaluation mode.

    Raises:
        RunError: the folder is neither, holds no whole checkpoint, or what it holds does not fit together.
    """
    return load_checkpoint(find_checkpoint(Path(path)), device)


def load_checkpoint(found: Checkpoint, device: str = "cpu") -> LanguageModel:
    """The model of a checkpoint that was opened before, so that it is checked once and known by its step.

    Args:
        found: the checkpoint.
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        RunError: what it holds does not fit together.
    """
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
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
    """The checkpoint at a path, or the newest whole one of the run there.

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
    """The architecture of a checkpoint.

    Raises:
        RunError: it holds no language model, but what learning a skill left.
    """
    if not (saved.path / CONFIG).is_file():
        raise RunError(f"{saved.path} holds no language model: it has no {CONFIG}")
    return recipes.build(json.loads(saved.text(CONFIG)), ModelConfig)
