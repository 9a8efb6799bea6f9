"""Text for language models: sources → divided text → tokens → batches, each step cached and repeatable.

Reading order: `config.py` → `sources.py` (`readers.py`, `hub.py`, `installed.py`) → `corpus.py` (`split.py`)
→ `tokenizer.py` → `streams.py` → `prepare.py`, which joins them → `batches.py`, `windows.py`.
"""

from __future__ import annotations

from expertise.lm.data.batches import Batch, Batches
from expertise.lm.data.config import DataConfig, SourceTable, TokenizerConfig, require_source
from expertise.lm.data.documents import Document, Source
from expertise.lm.data.prepare import Prepared, prepare
from expertise.lm.data.sources import open_sources, source_digest
from expertise.lm.data.streams import TokenStream
from expertise.lm.data.tokenizer import load_tokenizer
from expertise.lm.data.windows import IGNORED, EvaluationWindows, evaluation_windows

__all__ = [
    "IGNORED",
    "Batch",
    "Batches",
    "DataConfig",
    "Document",
    "EvaluationWindows",
    "Prepared",
    "Source",
    "SourceTable",
    "TokenStream",
    "TokenizerConfig",
    "evaluation_windows",
    "load_tokenizer",
    "open_sources",
    "prepare",
    "require_source",
    "source_digest",
]
