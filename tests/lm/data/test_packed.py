"""Whole documents in windows: each once per epoch, by seed and index alone; and what is evaluated of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expertise.errors import DataError
from expertise.lm.data import (
    IGNORED,
    PADDING,
    Batch,
    ContextKeys,
    DataConfig,
    PackedBatches,
    Prepared,
    TokenizerConfig,
    TokenStream,
    evaluation_windows,
    prepare,
)
from expertise.lm.data.packed import best_fit

END = 0


def stream(sizes: list[int], learnt_from: list[int] | None = None) -> TokenStream:
    """Documents of so many tokens, all tokens different; the learnt ones are those from a place on."""
    starts = np.cumsum([0, *(size + 1 for size in sizes)])
    tokens = np.arange(starts[-1], dtype=np.uint16) + 1
    tokens[starts[:-1]] = END
    learnt = None
    if learnt_from is not None:
        learnt = np.zeros(len(tokens), dtype=bool)
        for start, end, first in zip(starts, starts[1:], learnt_from, strict=False):
            learnt[start + 1 + first : end] = True
            if end < len(tokens):
                learnt[end] = learnt[end - 1]
    return TokenStream(tokens, starts[:-1], np.arange(len(sizes)) % 3, ("a", "b", "c"), learnt)


def documents_in(batch: Batch) -> list[tuple[list[int], list[int], int]]:
    """(tokens, targets, domain) of each document."""
    assert batch.documents is not None
    found = []
    for row in range(len(batch.tokens)):
        for number in sorted(set(batch.documents[row].tolist()) - {PADDING}):
            here = batch.documents[row] == number
            (domain,) = set(batch.domains[row][here].tolist())
            found.append((batch.tokens[row][here].tolist(), batch.targets[row][here].tolist(), domain))
    return found


# --- packing --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=120), st.integers(40, 64))
def test_packing_loses_nothing_and_overfills_nothing(sizes: list[int], capacity: int) -> None:
    windows = best_fit(sizes, capacity)
    assert sorted(index for window in windows for index in window) == list(range(len(sizes)))
    filled = [sum(sizes[index] for index in window) for window in windows]
    assert all(0 < size <= capacity for size in filled)
    # No two windows could be one: else the rule did not take the room that there was.
    assert sum(2 * size <= capacity for size in filled) <= 1


def test_the_best_fit_is_taken() -> None:
    assert best_fit([6, 3, 7, 4], 10) == [[2, 1], [0, 3]]
    assert best_fit([5, 5, 5], 10) == [[0, 1], [2]]


# --- batches --------------------------------------------------------------------------------------------


def test_each_document_is_whole_and_comes_once_per_epoch() -> None:
    sizes = [3, 9, 4, 1, 7, 7, 2, 5, 11, 6, 1, 8]
    source = stream(sizes)
    batches = PackedBatches(source, context=12, batch_size=1, seed=3)
    for epoch in range(2):
        seen = []
        for index in range(batches.num_windows):
            seen += documents_in(batches.batch(epoch * batches.num_windows + index))
        expected = []
        for number, (start, end) in enumerate(zip(source.starts, source.ends(), strict=True)):
            ids = source.tokens[start:end].tolist()
            expected.append((ids, [*ids[1:], END], number % 3))
        assert sorted(seen) == sorted(expected)


def test_what_is_left_over_counts_nowhere() -> None:
    batch = PackedBatches(stream([3, 9, 4]), context=12, batch_size=2, seed=0).batch(0)
    assert batch.documents is not None
    padding = batch.documents == PADDING
    assert padding.any()
    assert (batch.targets[padding] == IGNORED).all()
    assert (batch.tokens[padding] == END).all()
    assert (batch.domains[padding] == PADDING).all()
    assert batch.num_targets() == int((~padding).sum()) == 19


def test_a_batch_is_a_function_of_seed_and_index() -> None:
    sizes = np.random.default_rng(0).integers(1, 15, 80).tolist()
    there = PackedBatches(stream(sizes), 16, 3, seed=7)
    back = PackedBatches(stream(sizes), 16, 3, seed=7)
    forward = [there.batch(i).tokens for i in range(70)]
    backward = [back.batch(i).tokens for i in reversed(range(70))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(PackedBatches(stream(sizes), 16, 3, seed=8).batch(0).tokens, forward[0])
    rows = torch.cat(forward)[:, 1].tolist()
    windows = there.num_windows
    assert rows[:windows] != rows[windows : 2 * windows], "each epoch has its own order"


def test_only_what_is_learnt_is_a_target_and_an_answer_is_over_at_its_end() -> None:
    source = stream([4, 5], learnt_from=[2, 5])
    # The second document's last token is not learnt: neither is the end of text after it; it is left out.
    batches = PackedBatches(source, context=8, batch_size=1, seed=0)
    ((tokens, targets, domain),) = documents_in(batches.batch(0))
    assert (tokens, domain) == ([END, 2, 3, 4, 5], 0)
    assert targets == [IGNORED, IGNORED, 4, 5, END]
    assert (
        batches.notes()[0]
        == "1 of 2 training records are left out: they have nothing to learn within 8 tokens"
    )


def test_a_long_record_is_cut_and_counted() -> None:
    source = stream([20, 7, 8, 30], learnt_from=[1, 1, 1, 25])
    batches = PackedBatches(source, context=8, batch_size=1, seed=0)
    found = sorted(document for index in range(3) for document in documents_in(batches.batch(index)))
    ids = source.tokens
    at = source.starts
    assert [tokens for tokens, _, _ in found] == sorted(ids[s : s + 8].tolist() for s in at[:3])
    by_start = {tokens[1]: targets for tokens, targets, _ in found}
    assert by_start[ids[at[0] + 1]] == [IGNORED, *ids[at[0] + 2 : at[0] + 9].tolist()]
    assert by_start[ids[at[1] + 1]] == [IGNORED, *ids[at[1] + 2 : at[1] + 8].tolist(), END], "it fits"
    assert batches.notes()[:2] == [
        "2 of 4 training records are cut: they are longer than the context of 8 tokens (14 tokens left out)",
        "1 of 4 training records are left out: they have nothing to learn within 8 tokens",
    ]


def test_long_text_goes_on_in_pieces_and_loses_nothing() -> None:
    source = stream([20, 7])
    batches = PackedBatches(source, context=8, batch_size=1, seed=0)
    found = [d for i in range(batches.num_windows) for d in documents_in(batches.batch(i))]
    assert sum(len(tokens) for tokens, _, _ in found) == 29
    targets = sorted(target for _, targets, _ in found for target in targets)
    assert targets == sorted([*source.tokens[1:21].tolist(), END, *source.tokens[22:29].tolist(), END])
    assert not any("cut" in note for note in batches.notes())


def test_fewer_windows_than_a_batch_needs_are_refused() -> None:
    PackedBatches(stream([7, 7]), context=8, batch_size=2, seed=0)
    with pytest.raises(DataError, match="fill 2 windows, but one batch needs 3") as caught:
        PackedBatches(stream([7, 7]), context=8, batch_size=3, seed=0)
    assert "lower train.batch_size (3) to 2 or less, or model.context (8)" in caught.value.hints[0]
    with pytest.raises(DataError, match="fill 1 window,"):
        PackedBatches(stream([7]), context=8, batch_size=3, seed=0)


@pytest.mark.parametrize("keys", [ContextKeys(), ContextKeys("context", "context")])
def test_prompts_that_fill_the_context_want_a_longer_one(keys: ContextKeys) -> None:
    with pytest.raises(DataError, match="fill 0 windows") as caught:
        PackedBatches(stream([20], learnt_from=[19]), context=8, batch_size=1, seed=0, keys=keys)
    assert "1 of 1 training records" in caught.value.hints[0]
    assert f"raise {keys.higher}" in caught.value.hints[1]
    assert "lower" not in caught.value.hints[1]
    with pytest.raises(DataError, match="fill 1 window,") as caught:
        PackedBatches(stream([7, 20], learnt_from=[1, 19]), context=8, batch_size=2, seed=0, keys=keys)
    assert f"raise {keys.higher}, or lower train.batch_size (2) to 1 or less" in caught.value.hints[1]


def test_a_context_that_cannot_be_changed_is_not_advised() -> None:
    keys = ContextKeys("", "")
    for sizes, learnt in (([20], [19]), ([7], [1])):
        with pytest.raises(DataError) as caught:
            PackedBatches(stream(sizes, learnt_from=learnt), context=8, batch_size=2, seed=0, keys=keys)
        assert "raise" not in caught.value.hints[-1]
        assert "(8)" not in caught.value.hints[-1]
        assert caught.value.hints[-1].endswith(("add documents", "shorter prompts"))


# --- from a recipe's data, and what is evaluated --------------------------------------------------------


def questions(write, number: int = 120) -> Path:
    rows = [{"prompt": f"What is {i}?\nA:", "completion": f" It is {i}, é."} for i in range(number)]
    return write("q.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def prepared_of(path: Path, pack: str = "auto", vocab_size: int = 300) -> Prepared:
    return prepare(
        DataConfig(source=str(path), kind="prompt", pack=pack), TokenizerConfig(vocab_size=vocab_size)
    )


def test_the_recipe_chooses_the_packing(write, corpus: Path) -> None:
    records = prepared_of(questions(write))
    assert records.batches(64, 2, 0).batch(0).documents is not None
    text = prepare(DataConfig(source=str(corpus), pack="documents"), TokenizerConfig(vocab_size=300))
    batch = text.batches(64, 2, 0).batch(0)
    assert batch.documents is not None
    assert text.some_ignored
    stream_of_text = prepare(DataConfig(source=str(corpus)), TokenizerConfig(vocab_size=300))
    assert stream_of_text.batches(64, 2, 0).batch(0).documents is None
    assert not stream_of_text.some_ignored


def test_records_in_a_stream_have_the_same_targets(write) -> None:
    path = questions(write)
    packed, streamed = prepared_of(path), prepared_of(path, "stream")
    a, b = packed.batches(48, 1, 0), streamed.batches(48, 1, 0)
    found = []
    for batches in (a, b):
        targets = torch.cat([batches.batch(i).targets.flatten() for i in range(batches.num_windows)])
        found.append(sorted(targets[targets != IGNORED].tolist()))
    missing = len(found[0]) - len(found[1])
    assert b.batch(0).documents is None
    assert 0 <= missing < 48, "a stream's last window may be short"
    assert streamed.some_ignored


@pytest.mark.parametrize("pack", ["documents", "stream"])
@pytest.mark.parametrize("context", [5, 16, 64, 1000])
def test_each_learnt_token_is_evaluated_once_whatever_the_context(write, pack: str, context: int) -> None:
    prepared = prepared_of(questions(write), pack)
    found = evaluation_windows(prepared, "validation", "q", 0, context)
    records = list(prepared.records("validation", "q"))
    said = "".join(record.text[a:b] for record in records for a, b in record.learnt or ())
    targets = found.targets[found.targets != IGNORED]
    assert prepared.tokenizer.decode(targets.tolist(), skip_special_tokens=True) == said
    assert found.num_bytes == len(said.encode())
    # In a stream nothing follows the very last document.
    ends = int((targets == prepared.end_of_text).sum())
    assert ends == len(records) - (pack == "stream")
    assert found.tokens.shape == found.targets.shape
    assert (found.documents is None) == (pack == "stream")
    if found.documents is not None:
        assert (found.targets[found.documents == PADDING] == IGNORED).all()
        tokens = found.tokens[found.documents != PADDING]
        assert torch.equal(tokens, found.ids)


def test_the_bytes_do_not_depend_on_tokenizer_or_context(write) -> None:
    path = questions(write)
    numbers = {
        evaluation_windows(prepared_of(path, vocab_size=size), "train", "q", limit, context).num_bytes
        for size, context in [(260, 8), (300, 64), (340, 200)]
        for limit in (100,)
    }
    (number,) = numbers
    # The record that reaches the limit is whole.
    assert 100 <= number < 100 + len(" It is 119, é.".encode())


def test_a_domain_without_anything_to_evaluate_has_no_windows(write) -> None:
    prepared = prepared_of(questions(write))
    object.__setattr__(prepared, "records", lambda *_: iter(()))
    found = evaluation_windows(prepared, "test", "q", 0, 8)
    assert found.tokens.shape == (0, 8)
    assert found.num_bytes == 0
