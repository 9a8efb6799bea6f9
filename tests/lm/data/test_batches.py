from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from expertise.errors import DataError
from expertise.lm.data import (
    IGNORED,
    Batches,
    ContextKeys,
    DataConfig,
    TokenizerConfig,
    TokenStream,
    evaluation_windows,
)
from expertise.lm.data import prepare as prepare_data


def stream(num_tokens: int) -> TokenStream:
    starts = np.arange(0, num_tokens, 10)
    return TokenStream(
        tokens=np.arange(num_tokens, dtype=np.uint16),
        starts=starts,
        domain_ids=np.arange(len(starts)) % 3,
        domains=("a", "b", "c"),
    )


def test_targets_follow_tokens_and_domains_belong_to_tokens() -> None:
    batch = Batches(stream(1000), context=16, batch_size=4, seed=1).batch(3)
    assert batch.tokens.shape == batch.targets.shape == batch.domains.shape == (4, 16)
    assert batch.tokens.dtype == batch.targets.dtype == batch.domains.dtype == torch.int64
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert torch.equal(batch.domains, batch.tokens // 10 % 3)


def test_an_epoch_has_each_window_once_and_the_next_another_order() -> None:
    batches = Batches(stream(1000), context=16, batch_size=5, seed=0)
    assert batches.num_windows == 62
    rows = torch.cat([batches.batch(i).tokens[:, 0] for i in range(25)]).tolist()
    first, second = rows[:62], rows[62:124]
    assert sorted(first) == sorted(second) == list(range(0, 62 * 16, 16))
    assert first != second


def test_a_batch_depends_on_seed_and_index_only() -> None:
    forward = Batches(stream(1000), context=16, batch_size=4, seed=7)
    backward = Batches(stream(1000), context=16, batch_size=4, seed=7)
    there = [forward.batch(i) for i in range(60)]
    back = [backward.batch(i) for i in reversed(range(60))][::-1]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(there, back, strict=True))
    other = Batches(stream(1000), context=16, batch_size=4, seed=8)
    assert not torch.equal(other.batch(0).tokens, there[0].tokens)


def test_more_rows_than_windows_is_refused_and_exactly_enough_is_not() -> None:
    Batches(stream(65), context=16, batch_size=4, seed=0).batch(5)
    with pytest.raises(DataError, match="has 64 tokens, but one batch needs 65") as caught:
        Batches(stream(64), context=16, batch_size=4, seed=0)
    assert "lower train.batch_size (4) to 3 or less, or model.context (16)" in caught.value.hints[0]
    # No batch is small enough where the text does not fill one window.
    with pytest.raises(DataError, match="has 9 tokens, but one batch needs 17") as caught:
        Batches(stream(9), context=16, batch_size=1, seed=0)
    assert caught.value.hints == ("lower model.context (16), or add text",)
    with pytest.raises(DataError) as caught:
        Batches(stream(64), context=16, batch_size=4, seed=0, keys=ContextKeys("", ""))
    assert caught.value.hints == ("lower train.batch_size (4) to 3 or less, or add text",)


@pytest.fixture
def prepared(corpus: Path):
    return prepare_data(DataConfig(source=str(corpus)), TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize("context", [1, 7, 64, 10_000])
@pytest.mark.parametrize("max_bytes", [0, 1, 100, 2000])
def test_windows_predict_each_token_but_the_first_once(prepared, context: int, max_bytes: int) -> None:
    found = evaluation_windows(prepared, "validation", "birds", max_bytes, context)
    assert found.tokens.shape == found.targets.shape
    assert found.tokens.shape[1] == context
    counted = found.targets != IGNORED
    assert torch.equal(found.targets[counted], found.ids[1:])
    assert torch.equal(found.tokens[counted], found.ids[:-1])
    assert counted[:-1].all()
    assert found.ids[0] == prepared.end_of_text
    text = prepared.tokenizer.decode(found.ids.tolist())
    assert text == "".join(prepared.documents("validation", "birds"))[: max_bytes or None]
    assert len(text.encode()) == found.num_bytes


def test_the_bytes_do_not_depend_on_the_tokenizer(prepared, corpus: Path) -> None:
    other = prepare_data(DataConfig(source=str(corpus)), TokenizerConfig(vocab_size=260))
    ours, theirs = (evaluation_windows(p, "test", "stones", 1234, 32) for p in (prepared, other))
    assert ours.num_bytes == theirs.num_bytes == 1234
    assert len(ours.ids) != len(theirs.ids)


def test_the_limit_falls_on_a_character(write) -> None:
    text = "é" * 2000
    prepared = prepare_data(DataConfig(source=str(write("e.txt", text))), TokenizerConfig(vocab_size=300))
    assert evaluation_windows(prepared, "test", "e", 33, 8).num_bytes == 32
    assert evaluation_windows(prepared, "test", "e", 1, 8).tokens.shape == (0, 8)


def test_uniform_guessing_gives_the_bits_it_must(prepared) -> None:
    found = evaluation_windows(prepared, "test", "birds", 0, 16)
    logits = torch.zeros(*found.tokens.shape, prepared.vocab_size)
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), found.targets.flatten(), reduction="sum", ignore_index=IGNORED
    )
    bits = nll.item() / math.log(2) / found.num_bytes
    assert bits == pytest.approx(math.log2(prepared.vocab_size) * (len(found.ids) - 1) / found.num_bytes)
