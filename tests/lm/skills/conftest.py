"""Two bases on disk, a run of ours and a Llama of transformers, and two skills of each in a library."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.lm.causal import CausalLM
from expertise.lm.open import open_model
from expertise.lm.skills import LearnConfig
from expertise.lm.skills.config import config_of
from expertise.lm.skills.disk import learn_into
from expertise.lm.train import train
from expertise.skills.library import Library

DOMAINS = ("prose", "code")


def silent(_line: str) -> None:
    """Print nothing."""


@pytest.fixture(scope="session")
def run_base(tmp_path_factory: pytest.TempPathFactory, small_recipe: Callable[..., Any]) -> Path:
    """A run of ours: a mixture that knows a little of both domains."""
    run = tmp_path_factory.mktemp("bases") / "run"
    train(small_recipe("train.steps=12"), run, silent)
    return run


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory, run_base: Path) -> Path:
    """A folder of a tiny Llama, with the run's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("bases") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(run_base / "tokenizer.json", folder)
    return folder


@pytest.fixture(scope="session", params=["run", "llama"])
def base_path(request: pytest.FixtureRequest) -> Path:
    """Each base in turn."""
    path: Path = request.getfixturevalue(f"{request.param}_base")
    return path


@pytest.fixture(scope="session")
def base(base_path: Path) -> CausalLM:
    """The base, opened."""
    return open_model(base_path)


@pytest.fixture(scope="session")
def settings(small_text: Path) -> Callable[..., list[str]]:
    """`settings("prose", "train.steps=3")`: a small training on some domains of the small text."""

    def make(domain: str = "", *more: str) -> list[str]:
        domains = f'["{domain}"]' if domain else "[]"
        return [
            f"data.source={small_text}",
            f"data.domains={domains}",
            "train.steps=30",
            "train.batch_size=8",
            "train.device=cpu",
            "train.threads=1",
            "optimizer.learning_rate=0.01",
            "evaluation.bytes_per_domain=600",
            *more,
        ]

    return make


@pytest.fixture(scope="session")
def library(
    base_path: Path, settings: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Library:
    """A skill for each domain."""
    folder = tmp_path_factory.mktemp("skills")
    made = Library(folder / "library")
    for domain in DOMAINS:
        config = config_of(LearnConfig, settings(domain))
        learn_into(made, base_path, domain, config, folder / f"work-{domain}", say=silent)
    return made
