"""Language models made of experts, in the order in which data flows.

`data` (text → tokens) → `model` → `objective` (losses) → `train` → `generate`, `evaluate`.
"""

from expertise.lm.config import ModelConfig
from expertise.lm.load import load
from expertise.lm.model import LanguageModel
from expertise.lm.open import open_model

__all__ = ["LanguageModel", "ModelConfig", "load", "open_model"]
