"""Prompts and conversations from file to tokens: what is learnt, what is refused, what is left whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import DataError, ExpertiseError, RecipeError
from expertise.lm.data import (
    DataConfig,
    Document,
    Prepared,
    SourceTable,
    TokenizerConfig,
    encode_documents,
    load_tokenizer,
    open_sources,
    prepare,
)
from expertise.lm.data.config import KINDS
from expertise.lm.data.split import SPLITS

SMALL = TokenizerConfig(vocab_size=300)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(number: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"What is {i} and {i}?\nA:", "completion": f" {2 * i}, surely."} for i in range(number)
    ]


def conversation(*said: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(said)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)]}


def message(data: DataConfig) -> str:
    with pytest.raises(ExpertiseError) as caught:
        [document for source in open_sources(data) for document in source.documents()]
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


def everything(prepared: Prepared, domain: str) -> list[Document]:
    return [record for side in SPLITS for record in prepared.records(side, domain)]


# --- what a recipe may say ------------------------------------------------------------------------------


def test_packing_follows_the_kind_unless_it_is_named() -> None:
    assert [DataConfig(kind=kind).packed for kind in KINDS] == [False, True, True]
    assert DataConfig(pack="documents").packed
    assert not DataConfig(kind="prompt", pack="stream").packed


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "promt"}, "data.kind: unknown 'promt' | did you mean 'prompt'?"),
        ({"kind": "prompt", "source": "installed"}, "the installed text has no records"),
        ({"kind": "prompt", "template": "{{ messages }}"}, "data.template is for data.kind = 'messages'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, str], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        DataConfig(**fields)
    assert expected in " | ".join([caught.value.message, *caught.value.hints])


# --- prompt and completion ------------------------------------------------------------------------------


def test_a_prompt_and_its_completion_are_one_document(write) -> None:
    path = write("q.jsonl", lines([{"question": "why?\r\n", "answer": "so.", "n": 1}]))
    table = SourceTable(path=str(path), domain="q", prompt_field="question", completion_field="answer")
    (source,) = open_sources(DataConfig(source=[table], kind="prompt"))
    (found,) = source.documents()
    assert found == Document("q.jsonl:1", "q", "why?\nso.", learnt=((5, 8),))
    assert found.num_learnt_bytes() == 3
    assert Document.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completions": "b"}, "no field 'completion' | did you mean 'completions'?"),
        ({"promt": "a", "completion": "b"}, "no field 'prompt' | did you mean 'promt'?"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": ["a"], "completion": "b"}, "'prompt' is a list, not text"),
        ({"prompt": None, "completion": "b"}, "'prompt' is null, not text | leave such rows out"),
        ({"prompt": 7, "completion": "b"}, "'prompt' is a number, not text"),
        ({"prompt": True, "completion": "b"}, "'prompt' is true, not text"),
        ({"prompt": {}, "completion": "b"}, "'prompt' is an object, not text"),
        ([1], "a list, not an object"),
        (None, "null, not an object"),
    ],
)
def test_a_bad_prompt_is_named_with_file_and_line(write, row: Any, expected: str) -> None:
    path = write("q.jsonl", lines([{"prompt": "fine", "completion": "too"}, row]))
    found = message(DataConfig(source=str(path), kind="prompt"))
    assert f"{path}, line 2: " in found
    assert expected in found


def test_plain_text_is_no_record(write, tmp_path: Path) -> None:
    path = write("d/readme.txt", "words")
    assert "readme.txt is read as plain text; data.kind = 'prompt' needs records" in message(
        DataConfig(source=str(path), kind="prompt")
    )
    write("d/a.jsonl", lines(pairs(1)))
    (source,) = open_sources(DataConfig(source=str(tmp_path / "d"), kind="prompt"))
    assert len(list(source.documents())) == 1
    assert "1 plain text file (5 bytes)" in source.notes()[0]


# --- messages -------------------------------------------------------------------------------------------


def test_a_conversation_is_rendered_and_the_template_is_part_of_the_cache(write, cache: Path) -> None:
    path = write("c.jsonl", lines([conversation(f"{i}?", f"{i}.", "sure?", "yes") for i in range(30)]))
    prepared = prepare(DataConfig(source=str(path), kind="messages"), SMALL)
    records = everything(prepared, "c")
    assert len(records) == 30
    for record in records:
        assert record.learnt is not None
        said = [record.text[start:end] for start, end in record.learnt]
        assert said[0].endswith(".<|im_end|>")
        assert said[1] == "yes<|im_end|>"
    other = DataConfig(
        source=str(path), kind="messages", template="{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    assert everything(prepare(other, SMALL), "c")[0].text != records[0].text
    assert len(list((cache / "text").glob("[0-9a-f]*"))) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hello", "line 2: 'messages' is text, not a list of messages"),
        ([], "line 2: no message of the assistant"),
        ([{"role": "user", "content": "a"}], "line 2: no message of the assistant"),
        (["a"], "line 2, message 1: text, not an object"),
        ([{"rol": "user", "content": "a"}], "line 2, message 1: no field 'role' | did you mean 'rol'?"),
        ([{"role": "user", "text": "a"}], "line 2, message 1: no field 'content'"),
        ([{"role": "usr", "content": "a"}], "line 2, message 1: unknown role 'usr' | did you mean 'user'?"),
        ([{"role": "user", "content": 3}], "line 2, message 1: 'content' is a number, not text"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "line 2, message 2: the assistant's content is empty",
        ),
    ],
)
def test_a_bad_conversation_is_named_with_file_and_line(write, value: Any, expected: str) -> None:
    path = write("c.jsonl", lines([conversation("a", "b"), {"messages": value}]))
    found = message(DataConfig(source=str(path), kind="messages"))
    assert str(path) in found
    assert expected in found


def test_a_conversation_without_its_field_or_with_another(write) -> None:
    path = write("c.jsonl", lines([{"dialogue": conversation("a", "b")["messages"]}]))
    assert "line 1: no field 'messages' | known are: dialogue" in message(
        DataConfig(source=str(path), kind="messages")
    )
    table = SourceTable(path=str(path), domain="c", messages_field="dialogue")
    (source,) = open_sources(DataConfig(source=[table], kind="messages"))
    assert len(list(source.documents())) == 1


# --- records stay whole ---------------------------------------------------------------------------------


def test_records_are_dropped_whole_or_not_at_all(write) -> None:
    shared = "A paragraph that is longer than sixty bytes and stands in every answer of this file."
    rows = [{"prompt": f"{i}?", "completion": f"{i}.\n\n{shared}\n\nEnd."} for i in range(30)]
    path = write("q.jsonl", lines([*rows, *rows[:7]]))
    prepared = prepare(DataConfig(source=str(path), kind="prompt"), SMALL)
    found = everything(prepared, "q")
    assert sorted(r.text for r in found) == sorted(row["prompt"] + row["completion"] for row in rows)
    (note,) = prepared.notes
    total = sum(len((row["prompt"] + row["completion"]).encode()) for row in rows[:7])
    assert "left out: 7 records" in note
    assert f"({total} bytes)" in note
    kept = prepare(DataConfig(source=str(path), kind="prompt", deduplicate=False), SMALL)
    assert len(everything(kept, "q")) == 37
    assert kept.notes == ()


def test_the_same_text_learnt_elsewhere_is_another_record(write) -> None:
    rows = [{"prompt": "ab" + str(i), "completion": "cd"} for i in range(20)]
    moved = [{"prompt": "a", "completion": f"b{i}cd"} for i in range(20)]
    prepared = prepare(DataConfig(source=str(write("q.jsonl", lines(rows + moved))), kind="prompt"), SMALL)
    assert len(everything(prepared, "q")) == 40


@pytest.mark.parametrize("number", [3, 10, 200])
def test_records_are_divided_whole_however_few(write, number: int) -> None:
    rows = pairs(number)
    rows[0]["completion"] = "A very long answer. " * 200  # far more than a fortieth of all
    prepared = prepare(DataConfig(source=str(write("q.jsonl", lines(rows))), kind="prompt"), SMALL)
    texts = [{r.text for r in prepared.records(side, "q")} for side in SPLITS]
    assert all(texts)
    assert set.union(*texts) == {row["prompt"] + row["completion"] for row in rows}
    assert sum(map(len, texts)) == number


def test_two_records_are_too_few_and_a_cap_leaves_out_whole_ones(write) -> None:
    with pytest.raises(DataError, match="only 2 records, too few"):
        prepare(DataConfig(source=str(write("q.jsonl", lines(pairs(2)))), kind="prompt"), SMALL)
    path = write("long.jsonl", lines(pairs(100)))
    prepared = prepare(DataConfig(source=str(path), kind="prompt", cap_bytes=1000), SMALL)
    whole = {row["prompt"] + row["completion"] for row in pairs(100)}
    found = [record.text for record in everything(prepared, "long")]
    assert set(found) < whole
    assert 900 < sum(map(len, found)) <= 1000


# --- tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompt", "messages"])
def test_the_stream_marks_what_is_learnt(write, kind: str) -> None:
    rows = pairs(40) if kind == "prompt" else [conversation(f"{i}?", f"{i}.", "so?", "no") for i in range(40)]
    prepared = prepare(DataConfig(source=str(write("q.jsonl", lines(rows))), kind=kind), SMALL)
    for side in SPLITS:
        stream, records = prepared.stream(side), list(prepared.records(side, "q"))
        assert stream.learnt is not None
        assert len(stream.learnt) == len(stream.tokens)
        for record, start, end in zip(records, stream.starts, stream.ends(), strict=True):
            ids, learnt = stream.tokens[start + 1 : end], stream.learnt[start + 1 : end]
            assert prepared.tokenizer.decode(ids.tolist()) == record.text
            assert record.learnt is not None
            said = "".join(record.text[a:b] for a, b in record.learnt)
            assert prepared.tokenizer.decode(ids[learnt].tolist()) == said
            if end < len(stream.tokens):
                assert stream.learnt[end] == learnt[-1], "the end of text says that the answer is over"
        assert not stream.learnt[0]


def test_a_prompt_has_the_tokens_that_it_has_when_it_is_asked(write) -> None:
    rows = [{"prompt": f"say {i} th", "completion": f"en {i}"} for i in range(60)]
    prepared = prepare(DataConfig(source=str(write("q.jsonl", lines(rows))), kind="prompt"), SMALL)
    tokenizer = prepared.tokenizer
    together = tokenizer.encode("say 1 then 1").ids
    apart = tokenizer.encode("say 1 th").ids + tokenizer.encode("en 1").ids
    assert together != apart, "the test must be able to fail"
    (encoded,) = encode_documents(tokenizer, [Document("", "", "say 1 then 1", learnt=((8, 12),))])
    assert encoded.ids.tolist() == apart


def test_a_marker_is_one_token_where_the_tokenizer_has_it(write, tmp_path: Path) -> None:
    rows = [conversation(f"{i}?", "no <|im_end|> here") for i in range(40)]
    data = DataConfig(source=str(write("c.jsonl", lines(rows))), kind="messages")
    plain = prepare(data, SMALL)
    plain.tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    plain.tokenizer.save(str(tmp_path / "marked.json"))
    marked = prepare(data, TokenizerConfig(path=str(tmp_path / "marked.json")))
    own = load_tokenizer(tmp_path / "marked.json").token_to_id("<|im_end|>")
    stream = marked.stream("train")
    records = len(stream.starts)
    assert (stream.tokens == own).sum() == 2 * records, "what a message spells out is text"
    assert stream.learnt is not None
    assert (stream.tokens[np.asarray(stream.learnt)] == own).sum() == records
    record = next(marked.records("train", "c"))
    ids = stream.tokens[1 : stream.ends()[0]].tolist()
    assert marked.tokenizer.decode(ids, skip_special_tokens=False) == record.text
