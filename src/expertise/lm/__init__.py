"""Language models made of experts, in the order in which data flows.

`data` (text → tokens) → `model` → `objective` (losses) → `train` → `generate`, `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.lm.config import ModelConfig
    from expertise.lm.load import load
    from expertise.lm.model import LanguageModel
    from expertise.lm.open import open_model

__all__ = ["LanguageModel", "ModelConfig", "load", "open_model"]

public_names(
    __name__,
    {
        "config": ("ModelConfig",),
        "load": ("load",),
        "model": ("LanguageModel",),
        "open": ("open_model",),
    },
)
