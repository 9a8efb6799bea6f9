"""Exactly the intended tokens carry loss: streams, masks and batches against a slow reading of the rows."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expertise.errors import DataError
from expertise.lm.data import (
    IGNORED,
    PADDING,
    Batches,
    DataConfig,
    Document,
    PackedBatches,
    Prepared,
    TokenizerConfig,
    TokenStream,
    evaluation_windows,
    prepare,
)
from expertise.lm.data.split import SPLITS
from expertise.lm.data.streams import build_streams, open_stream

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789:.?"
"""All that the tokenizer knows: it makes no token of anything else."""


def tokenizer_of(alphabet: str = ALPHABET) -> tokenizers.Tokenizer:
    """Byte-pair encoding without an unknown token: what is outside its alphabet vanishes."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<|endoftext|>"], initial_alphabet=list(alphabet), show_progress=False
    )
    made.train_from_iterator([" ".join(alphabet)], trainer)
    return made


TOKENIZER = tokenizer_of()


def ids_of(text: str) -> list[int]:
    """The slow reading: a token for each known character."""
    return [TOKENIZER.token_to_id(c) for c in text if TOKENIZER.token_to_id(c) is not None]


def rows_to(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def questions(number: int) -> list[dict[str, str]]:
    return [{"prompt": f"what is {i}?", "completion": f"it is {i * 7}."} for i in range(number)]


LOST = [
    {"prompt": "漢 1", "completion": "字語"},  # nothing to learn: the answer has no token
    {"prompt": "漢", "completion": "字"},  # no token at all
    {"prompt": "字", "completion": "é"},
]


def learnt_of(document: Document) -> str:
    assert document.learnt is not None
    return "".join(document.text[start:end] for start, end in document.learnt)


# --- records without a token to learn -------------------------------------------------------------------


def test_a_record_without_tokens_does_not_move_the_mask_of_the_others(write, tmp_path: Path) -> None:
    rows = questions(60)
    mixed = [row for i, one in enumerate(rows) for row in (one, *LOST[i : i + 1])]
    clean = prepare(DataConfig(source=str(rows_to(tmp_path / "q.jsonl", rows)), kind="prompt"), TOKENIZER)
    (tmp_path / "other").mkdir()
    path = rows_to(tmp_path / "other" / "q.jsonl", mixed)
    found = prepare(DataConfig(source=str(path), kind="prompt"), TOKENIZER)
    for side in SPLITS:
        stream = found.stream(side)
        assert stream.learnt is not None
        assert len(stream.learnt) == len(stream.tokens)
        assert len(stream.starts) == len(stream.domain_ids)
        kept = [r for r in found.records(side, "q") if ids_of(learnt_of(r))]
        assert len(stream.starts) == len(kept)
        for record, start, end in zip(kept, stream.starts, stream.ends(), strict=True):
            said = stream.tokens[start + 1 : end][stream.learnt[start + 1 : end]]
            assert said.tolist() == ids_of(learnt_of(record))
    total = sum(len(found.stream(side).starts) for side in SPLITS)
    assert total == 60 == sum(len(clean.stream(side).starts) for side in SPLITS)
    (note,) = [note for note in found.notes if "no token" in note]
    assert "3 of 63 documents" in note
    assert "q.jsonl:" in note
    assert not any("no token" in note for note in clean.notes)
    assert sum(found.tokens_count[side]["q"] for side in SPLITS) == sum(
        len(found.stream(side).tokens) for side in SPLITS
    )


def test_plain_text_without_tokens_is_left_out_and_counted(write, tmp_path: Path) -> None:
    for i in range(30):
        write(f"d/{i}.txt", f"stone {i} is at {i * 3}.")
    write("d/other.txt", "漢字 漢")
    found = prepare(DataConfig(source=str(tmp_path / "d")), TOKENIZER)
    streams = [found.stream(side) for side in SPLITS]
    assert sum(len(stream.starts) for stream in streams) == 30
    for stream in streams:
        assert stream.learnt is None
        assert (np.diff(stream.starts) > 1).all()
    (note,) = [note for note in found.notes if "no token" in note]
    assert "1 of 31 documents" in note


def test_text_without_any_token_is_refused_in_one_line(write, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "漢" * (i + 1)} for i in range(30)]
    path = str(rows_to(tmp_path / "q.jsonl", rows))
    for pack in ("stream", "documents"):
        found = prepare(DataConfig(source=path, kind="prompt", pack=pack), TOKENIZER)
        with pytest.raises(DataError, match="one batch needs"):
            found.batches(4, 1, 0)
        assert evaluation_windows(found, "test", "q", 0, 4).tokens.shape == (0, 4)
    text = prepare(DataConfig(source=str(write("t.txt", "漢字\n\n" * 50))), TOKENIZER)
    with pytest.raises(DataError, match="one batch needs"):
        text.batches(4, 1, 0)
    assert evaluation_windows(text, "test", "t", 0, 4).num_bytes == 0


def test_what_has_no_token_to_learn_is_not_evaluated_either(tmp_path: Path) -> None:
    rows = questions(60) + [{"prompt": f"it {i}", "completion": "漢字" * (i + 1)} for i in range(60)]
    found = prepare(DataConfig(source=str(rows_to(tmp_path / "q.jsonl", rows)), kind="prompt"), TOKENIZER)
    windows = evaluation_windows(found, "validation", "q", 0, 16)
    kept = [r for r in found.records("validation", "q") if ids_of(learnt_of(r))]
    assert 0 < len(kept) < len(list(found.records("validation", "q")))
    assert windows.num_bytes == sum(len(learnt_of(r).encode()) for r in kept)
    targets = windows.targets[windows.targets != IGNORED].tolist()
    assert targets == [t for r in kept for t in (*ids_of(learnt_of(r)), found.end_of_text)]


def unknown_to(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|endoftext|>"])
    return made


def test_characters_without_a_token_are_counted(write) -> None:
    path = write("t.txt", "".join(f"a漢b {i} 字字\n" for i in range(100)))
    notes = prepare(DataConfig(source=str(path)), TOKENIZER).notes
    (note,) = [note for note in notes if "characters" in note]
    assert "300 of" in note
    assert "'字', '漢'" in note
    assert not prepare(DataConfig(source=str(path)), TokenizerConfig(vocab_size=300)).notes


@pytest.mark.parametrize(
    "model",
    [
        tokenizers.models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"),
        tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0),
    ],
)
def test_unknown_tokens_are_counted(write, model: tokenizers.models.Model) -> None:
    path = write("t.txt", "a 漢 a\n" * 100)
    found = prepare(DataConfig(source=str(path), deduplicate=False), unknown_to(model))
    (note,) = [note for note in found.notes if "'<unk>'" in note]
    assert note.startswith("100 of 300 tokens")


def test_a_vocabulary_of_words_that_knows_them_all_loses_nothing(write) -> None:
    path = write("t.txt", "stone river\n" * 100)
    model = tokenizers.models.WordLevel({"stone": 0, "river": 1})
    found = prepare(DataConfig(source=str(path), deduplicate=False), unknown_to(model))
    assert found.notes == ()


# --- lengths --------------------------------------------------------------------------------------------


def stored(folder: Path, documents: list[Document]) -> Path:
    """Documents as `build_text` stores them, all of them to train on."""
    folder.mkdir()
    for side in SPLITS:
        lines = [json.dumps(one.to_json()) + "\n" for one in documents if side == "train"]
        (folder / f"{side}.jsonl").write_text("".join(lines), "utf-8")
    return folder


def test_plain_text_and_records_may_share_a_stream(tmp_path: Path) -> None:
    text = stored(
        tmp_path / "text",
        [
            Document("1", "d", "plain"),
            Document("2", "d", "ab", learnt=((1, 2),)),
            Document("3", "d", "xyz"),
            Document("4", "d", "漢漢", learnt=((0, 2),)),
            Document("5", "d", "qr", learnt=((0, 1),)),
            Document("6", "d", "漢"),
            Document("7", "d", "uv"),
        ],
    )
    (tmp_path / "tokens").mkdir()
    facts = build_streams(text, TOKENIZER, ("d",), tmp_path / "tokens")
    stream = open_stream(tmp_path / "tokens", "train", facts["dtype"], ("d",))
    assert stream.learnt is not None
    shown = "".join(TOKENIZER.id_to_token(t) if t else "|" for t in stream.tokens.tolist())
    assert shown == "|plain|ab|xyz|qr|uv"
    marks = "".join("x" if mark else "-" for mark in stream.learnt)
    assert marks == "-xxxxxx-xxxxxxx--xx"


@pytest.mark.parametrize("name", ["learnt", "tokens", "starts", "domains"])
def test_files_that_do_not_fit_together_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text = stored(tmp_path / "text", [Document("2", "d", "ab", learnt=((1, 2),)) for _ in range(9)])
    folder = tmp_path / "tokens"
    folder.mkdir()
    facts = build_streams(text, TOKENIZER, ("d",), folder)
    path = folder / f"train.{name}"
    path.write_bytes(path.read_bytes()[: -8 if name in ("starts", "domains") else -1])
    with pytest.raises(DataError, match="do not fit together") as caught:
        open_stream(folder, "train", facts["dtype"], ("d",))
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.hints[0]


def test_a_short_mask_in_the_cache_is_built_again(tmp_path: Path, cache: Path) -> None:
    data = DataConfig(source=str(rows_to(tmp_path / "q.jsonl", questions(60))), kind="prompt")
    found = prepare(data, TOKENIZER)
    (path,) = cache.glob("tokens/*/train.learnt")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert len(found.stream("train").tokens) == len(whole)
    assert path.read_bytes() == whole


# --- one row and several, in every packing --------------------------------------------------------------


def slow_targets(ids: list[list[int]], masks: list[list[bool]], end: int) -> tuple[list[int], list[int]]:
    """The whole stream, and for each token the one after it where that is learnt, one by one."""
    tokens, wanted = [], []
    for of_one, mask in zip(ids, masks, strict=True):
        tokens.append(end)
        for token, is_learnt in zip(of_one, mask, strict=True):
            wanted.append(token if is_learnt else IGNORED)
            tokens.append(token)
        wanted.append(end if mask[-1] else IGNORED)
    return tokens, wanted


def read_all(batches: Any) -> list[Any]:
    number = -(-batches.num_windows // batches.batch_size)
    return [batches.batch(index) for index in range(number)]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["prompt", "text"])
def test_targets_of_one_row_and_of_several(tmp_path: Path, kind: str, pack: str, rows: int) -> None:
    lines = [
        one if kind == "prompt" else {"text": one["prompt"] + one["completion"]} for one in questions(90)
    ]
    data = DataConfig(source=str(rows_to(tmp_path / "q.jsonl", lines)), kind=kind, pack=pack)
    found = prepare(data, TOKENIZER)
    context = 24 if pack == "documents" else 16
    batches = found.batches(context, rows, 0)
    documents = list(found.records("train", "q"))
    ids = [ids_of(one.text) for one in documents]
    answers = [
        len(ids_of(learnt_of(one))) if kind == "prompt" else len(i)
        for one, i in zip(documents, ids, strict=True)
    ]
    masks = [[k >= len(i) - n for k in range(len(i))] for i, n in zip(ids, answers, strict=True)]
    tokens, wanted = slow_targets(ids, masks, found.end_of_text)
    at = {tuple(tokens[i : i + context]): i for i in range(0, len(tokens) - context, context)}
    for batch in read_all(batches):
        assert batch.tokens.shape == batch.targets.shape == (rows, context)
        assert (batch.tokens >= 0).all(), "what goes in never holds the ignored label"
        assert batch.tokens.data_ptr() != batch.targets.data_ptr()
        for row in range(rows):
            if pack == "stream":
                start = at[tuple(batch.tokens[row].tolist())]
                assert batch.targets[row].tolist() == wanted[start : start + context]
                continue
            for number in set(batch.documents[row].tolist()) - {PADDING}:
                here = batch.documents[row] == number
                went_in = batch.tokens[row][here].tolist()
                which = ids.index(went_in[1:])
                expected = slow_targets([ids[which]], [masks[which]], found.end_of_text)
                assert (went_in, batch.targets[row][here].tolist()) == expected
            assert (batch.targets[row][batch.documents[row] == PADDING] == IGNORED).all()


def test_writing_to_targets_leaves_the_inputs_alone() -> None:
    stream = TokenStream(np.arange(65, dtype=np.uint16), np.array([0]), np.array([0]), ("a",))
    for rows in (1, 4):
        batch = Batches(stream, 16, rows, 0).batch(0)
        before = batch.tokens.clone()
        batch.targets.fill_(IGNORED)
        assert torch.equal(batch.tokens, before)


# --- at random ------------------------------------------------------------------------------------------

piece = st.text(alphabet="ab1 漢é", max_size=8)
answer = piece.filter(lambda text: bool(text.strip()))
turns = st.lists(st.tuples(piece, answer), min_size=1, max_size=2)


def random_rows(kind: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    one: st.SearchStrategy[dict[str, Any]]
    if kind == "prompt":
        one = st.fixed_dictionaries({"prompt": piece, "completion": answer})
    elif kind == "messages":
        one = turns.map(
            lambda said: {
                "messages": [
                    {"role": role, "content": content}
                    for pair in said
                    for role, content in zip(("user", "assistant"), pair, strict=True)
                ]
            }
        )
    else:
        one = st.fixed_dictionaries({"text": answer})
    return st.lists(one, min_size=3, max_size=12)


def slow_document(document: Document) -> tuple[list[int], list[bool]]:
    """Character by character: a token for each that is known, learnt where its character is."""
    ids, mask = [], []
    for place, character in enumerate(document.text):
        for token in ids_of(character):
            ids.append(token)
            mask.append(document.learnt is None or any(a <= place < b for a, b in document.learnt))
    return ids, mask


@pytest.mark.parametrize("pack", ["stream", "documents"])
@pytest.mark.parametrize("kind", ["text", "prompt", "messages"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_exactly_what_is_meant_carries_loss(kind: str, pack: str, data: st.DataObject) -> None:
    rows = data.draw(random_rows(kind))
    context = data.draw(st.sampled_from([2, 5, 40]))
    size = data.draw(st.sampled_from([1, 2]))
    with tempfile.TemporaryDirectory() as folder:
        path = rows_to(Path(folder) / "q.jsonl", rows)
        found = prepare(
            DataConfig(
                source=str(path),
                kind=kind,
                pack=pack,
                deduplicate=False,
                template="{% for m in messages %}{{ m.role }}:{{ m.content }}.{% endfor %}"
                "{% if add_generation_prompt %}assistant:{% endif %}"
                if kind == "messages"
                else "",
            ),
            TOKENIZER,
        )
        check(found, kind, pack, context, size)


def check(found: Prepared, kind: str, pack: str, context: int, size: int) -> None:
    end = found.end_of_text
    read = [slow_document(one) for one in found.records("train", "q")]
    kept = [(ids, mask) for ids, mask in read if any(mask)]
    stream = found.stream("train")
    tokens, wanted = slow_targets([ids for ids, _ in kept], [mask for _, mask in kept], end)
    assert stream.tokens.tolist() == tokens
    if pack == "stream":
        expected = wanted[: (len(tokens) - 1) // context * context]
    else:
        expected = []
        for ids, mask in kept:
            _, targets = slow_targets([ids], [mask], end)
            expected += targets if kind == "text" else targets[:context]
    expected = sorted(target for target in expected if target != IGNORED)
    try:
        batches = found.batches(context, size, 0)
    except DataError:
        assert len(expected) < size * context
        return
    batches.batch_size = 1
    seen = []
    for index in range(batches.num_windows):
        batch = batches.batch(index)
        assert (batch.tokens >= 0).all()
        seen += batch.targets[batch.targets != IGNORED].tolist()
    assert sorted(seen) == expected
    assert isinstance(batches, PackedBatches if pack == "documents" else Batches)
