"""Text for language models: sources → divided text → tokens → batches, each step cached and repeatable.

Reading order: `config.py` → `sources.py` (`folders.py`, `readers.py`, `hub.py`, `installed.py`) → `kinds.py`
(`chat.py`) → `corpus.py` (`split.py`) → `tokenizer.py`, `encoded.py` → `streams.py` (`coverage.py`) →
`prepare.py`, which joins them → `held_out.py` (text that is only looked at), `batches.py`, `packed.py`,
`windows.py`; `left_out.py` counts what is left out on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.lm.data.batches import IGNORED, PADDING, Batch, Batches, ContextKeys, Windows
    from expertise.lm.data.chat import Chat
    from expertise.lm.data.config import DataConfig, SourceTable, TokenizerConfig, require_source
    from expertise.lm.data.documents import Document, Source
    from expertise.lm.data.encoded import encode_documents
    from expertise.lm.data.held_out import HELD_OUT, HeldOut, Readable, all_of
    from expertise.lm.data.packed import PackedBatches
    from expertise.lm.data.prepare import Prepared, prepare
    from expertise.lm.data.sources import open_sources, source_digest
    from expertise.lm.data.split import ALL
    from expertise.lm.data.streams import TokenStream
    from expertise.lm.data.tokenizer import load_tokenizer
    from expertise.lm.data.windows import EvaluationWindows, evaluation_windows

__all__ = [
    "ALL",
    "HELD_OUT",
    "IGNORED",
    "PADDING",
    "Batch",
    "Batches",
    "Chat",
    "ContextKeys",
    "DataConfig",
    "Document",
    "EvaluationWindows",
    "HeldOut",
    "PackedBatches",
    "Prepared",
    "Readable",
    "Source",
    "SourceTable",
    "TokenStream",
    "TokenizerConfig",
    "Windows",
    "all_of",
    "encode_documents",
    "evaluation_windows",
    "load_tokenizer",
    "open_sources",
    "prepare",
    "require_source",
    "source_digest",
]

public_names(
    __name__,
    {
        "batches": (
            "IGNORED",
            "PADDING",
            "Batch",
            "Batches",
            "ContextKeys",
            "Windows",
        ),
        "chat": ("Chat",),
        "config": (
            "DataConfig",
            "SourceTable",
            "TokenizerConfig",
            "require_source",
        ),
        "documents": (
            "Document",
            "Source",
        ),
        "encoded": ("encode_documents",),
        "held_out": (
            "HELD_OUT",
            "HeldOut",
            "Readable",
            "all_of",
        ),
        "packed": ("PackedBatches",),
        "prepare": (
            "Prepared",
            "prepare",
        ),
        "sources": (
            "open_sources",
            "source_digest",
        ),
        "split": ("ALL",),
        "streams": ("TokenStream",),
        "tokenizer": ("load_tokenizer",),
        "windows": (
            "EvaluationWindows",
            "evaluation_windows",
        ),
    },
)
