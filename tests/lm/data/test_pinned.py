"""What plain text gives today it must give tomorrow: runs go on from it, and caches are found by it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from expertise.lm.data import Batches, DataConfig, TokenizerConfig, evaluation_windows, prepare


def short(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def test_keys_files_batches_and_windows_of_plain_text(corpus: Path, cache: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), TokenizerConfig(vocab_size=300))
    stream = prepared.stream("train")
    batches = Batches(stream, context=16, batch_size=4, seed=7)
    drawn = hashlib.sha256()
    for index in (0, 1, 50, 2000):
        batch = batches.batch(index)
        for table in (batch.tokens, batch.targets, batch.domains):
            drawn.update(table.numpy().tobytes())
    windows = evaluation_windows(prepared, "validation", "birds", 1000, 16)
    tables = (windows.tokens, windows.targets, windows.ids)
    text, tokens = (cache / kind for kind in ("text", "tokens"))
    assert {path.name for path in (*text.iterdir(), *tokens.iterdir()) if path.is_dir()} == {
        "84551dbf65446dee553ca743d51f7295",
        "15c3b6e53067fe65856e57c2b9cff460",
    }
    assert short(next(text.glob("*/train.jsonl")).read_bytes()) == "b7cb36db57963565"
    assert short(next(tokens.glob("*/train.tokens")).read_bytes()) == "9f8996d09ef93d5d"
    assert drawn.hexdigest()[:16] == "f1e9c7dd5a526144"
    assert short(b"".join(table.numpy().tobytes() for table in tables)) == "08100049957bc74a"
    assert windows.documents is None
    assert batches.batch(0).documents is None
