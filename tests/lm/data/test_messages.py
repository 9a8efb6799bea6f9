"""Messages as data has them: keys that mean something, other forms, parts of text, tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import DataError, ExpertiseError
from expertise.lm.data import DataConfig, SourceTable, TokenizerConfig, open_sources, prepare
from expertise.lm.data.chat import Chat
from expertise.lm.data.documents import Document
from expertise.lm.data.messages import read_messages

USER = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so."}
NAMED = (
    "{% for m in messages %}{{ m.role }}{% if m.name is defined %} {{ m['name'] }}{% endif %}: "
    "{{ m.content }}{% for c in m.tool_calls or [] %}!{{ c.function.name }}{% endfor %};{% endfor %}"
)
CALLS = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def documents(path: Path, **settings: Any) -> list[Document]:
    data = DataConfig(source=str(path), kind="messages", **settings)
    return [document for source in open_sources(data) for document in source.documents()]


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ExpertiseError) as caught:
        documents(path, **settings)
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


def learnt(document: Document) -> list[str]:
    assert document.learnt is not None
    return [document.text[start:end] for start, end in document.learnt]


@pytest.mark.parametrize(
    "none", [{"weight": 0}, {"train": False}, {"weight": 0, "train": False}, {"weight": 0.0}]
)
@pytest.mark.parametrize(
    "one", [{"weight": 1}, {"train": True}, {"weight": 1.0, "train": True}, {"weight": None}]
)
def test_a_turn_without_weight_is_context(write, none: dict[str, Any], one: dict[str, Any]) -> None:
    row = {"messages": [USER | none, ANSWER | none, USER | one, ANSWER | one | {"content": "yes"}]}
    bare = {"messages": [USER, ANSWER, USER, ANSWER | {"content": "yes"}]}
    found, plain = documents(write("c.jsonl", lines([row, bare])))
    assert found.text == plain.text
    assert learnt(plain) == ["so.<|im_end|>", "yes<|im_end|>"]
    assert learnt(found) == ["yes<|im_end|>"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"weight": 0.5}, "'weight' is 0.5"),
        ({"weight": -1}, "'weight' is -1"),
        ({"weight": "0"}, "'weight' is '0'"),
        ({"weight": True}, "'weight' is True"),
        ({"train": 0}, "'train' is 0"),
        ({"train": "no"}, "'train' is 'no'"),
        ({"weight": 0, "train": True}, "do not say the same"),
        ({"name": "Bob"}, "does not read 'name'"),
        ({"tool_calls": CALLS}, "does not read 'tool_calls'"),
        ({"reasoning_content": "hm"}, "does not read 'reasoning_content'"),
        ({"thinking": "hm"}, "does not read 'thinking'"),
        ({"function_call": {"name": "f"}}, "does not read 'function_call'"),
        ({"images": ["a.png"]}, "does not read 'images'"),
        ({"loss": False}, "does not read 'loss'"),
    ],
)
def test_what_changes_a_message_is_refused_by_name(write, extra: dict[str, Any], expected: str) -> None:
    path = write("c.jsonl", lines([{"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER | extra]}]))
    found = refusal(path)
    assert f"{path}, line 2, message 2: " in found
    assert expected in found


@pytest.mark.parametrize("key", ["loss_mask", "train_on_turn", "is_masked", "loss_weight", "learn"])
def test_other_names_of_what_is_learnt_are_refused(write, key: str) -> None:
    rows = [{"messages": [USER, {**ANSWER, key: 0}]}]
    assert f"does not read {key!r}" in refusal(write("c.jsonl", lines(rows)))


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"system": "Be brief."}, "'system' stands beside the messages"),
        ({"functions": [{"name": "add"}]}, "tools_field"),
        ({"weight": 0}, "'weight' stands beside the messages"),
        ({"train": False}, "'train' stands beside the messages"),
    ],
)
def test_what_stands_beside_the_messages_is_not_lost(write, beside: dict[str, Any], expected: str) -> None:
    path = write("c.jsonl", lines([{"messages": [USER, ANSWER], **beside}]))
    found = refusal(path)
    assert "line 1" in found
    assert expected in found


def test_what_says_nothing_beside_the_messages_passes(write) -> None:
    beside = {"system": "", "functions": [], "weight": 1, "train": True, "source": "web", "score": 0}
    (document,) = documents(write("c.jsonl", lines([{"messages": [USER, ANSWER], **beside}])))
    assert learnt(document) == ["so.<|im_end|>"]


def test_what_the_template_reads_passes(write) -> None:
    row = {"messages": [USER | {"name": "Ann"}, ANSWER | {"tool_calls": CALLS, "name": None}]}
    (found,) = documents(write("c.jsonl", lines([row])), template=NAMED)
    assert found.text == "user Ann: why?;assistant: so.!add;"
    assert learnt(found) == ["assistant: so.!add;"]
    assert "does not read 'reasoning_content'" in refusal(
        write("d.jsonl", lines([{"messages": [USER, ANSWER | {"reasoning_content": "hm"}]}])), template=NAMED
    )


def test_keys_without_meaning_are_ignored_and_counted(write) -> None:
    rows = [
        {
            "messages": [
                USER | {"id": i, "at": "noon", "tool_calls": [], "tool_call_id": "1"},
                ANSWER | {"content": f"{i}", "refusal": None},
            ]
        }
        for i in range(12)
    ]
    prepared = prepare(
        DataConfig(source=str(write("c.jsonl", lines(rows))), kind="messages"),
        TokenizerConfig(vocab_size=300),
    )
    (note,) = prepared.notes
    assert "'at' (12)" in note
    assert "'id' (12)" in note
    assert "'tool_call_id' (12)" in note
    assert "tool_calls" not in note
    assert "refusal" not in note


def test_all_turns_without_weight_are_nothing_to_learn(write) -> None:
    path = write("c.jsonl", lines([{"messages": [USER, ANSWER | {"weight": 0}]}]))
    assert "nothing to learn" in refusal(path)


def test_conversations_of_speakers_and_values_are_read(write) -> None:
    row = {
        "conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so.", "weight": 1}]
    }
    path = write("c.jsonl", lines([row, {"conversations": [USER, ANSWER]}]))
    table = SourceTable(path=str(path), domain="c", messages_field="conversations")
    data = DataConfig(source=[table], kind="messages")
    one, other = (d for source in open_sources(data) for d in source.documents())
    assert (one.text, one.learnt) == (other.text, other.learnt)
    with pytest.raises(DataError, match="unknown role 'bard'"):
        read_messages([{"from": "bard", "value": "x"}], "x")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "no text: 'image'"),
        ({"role": "user", "content": ["a"]}, "no text: 'str'"),
        ({"role": "user", "content": {"a": 1}}, "'content' is an object, not text"),
        ({"role": "user", "content": None}, "no field 'content'"),
        ({"role": "assistant", "tool_calls": []}, "no field 'content'"),
        ({"from": "human", "text": "a"}, "no field 'content'"),
    ],
)
def test_content_that_is_no_text_is_refused(message: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match="message 1") as caught:
        read_messages([message], "m.json")
    assert expected in caught.value.message


def test_tools_reach_the_template_or_are_refused(write) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"messages": [USER, ANSWER], "tools": tools}
    reads = "{{ tools | tojson if tools else '' }}" + NAMED
    (found,) = documents(write("c.jsonl", lines([row])), template=reads)
    assert found.text.startswith(json.dumps(tools))
    (same,) = documents(write("d.jsonl", lines([row | {"tools": json.dumps(tools)}])), template=reads)
    assert same.text == found.text
    assert "does not read the tools" in refusal(write("e.jsonl", lines([row])))
    assert documents(write("f.jsonl", lines([row | {"tools": []}, {"messages": [USER, ANSWER]}])))
    assert "'tools' is an object, not a list" in refusal(write("g.jsonl", lines([row | {"tools": {"a": 1}}])))


def test_tools_of_a_parquet_file_are_read_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [USER, ANSWER], "tools": '[{"name": "add"}]', "id": 1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    (found,) = documents(tmp_path / "c.parquet", template="{{ tools[0].name }}|" + NAMED)
    assert found.text.startswith("add|")


def test_a_message_that_the_template_leaves_out_is_refused() -> None:
    chat = Chat("{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}")
    with pytest.raises(DataError, match="message 1: the chat template leaves out what the system says"):
        chat.render([{"role": "system", "content": "obey"}, USER, ANSWER], "here")
    with pytest.raises(DataError, match="message 1: the chat template leaves out"):
        chat.prompt([{"role": "system", "content": "obey"}, USER])


def test_the_same_words_written_by_another_are_another_record(write) -> None:
    spelt = "why?<|im_end|>\n<|im_start|>user\nwell?"
    rows = [
        row
        for i in range(12)
        for row in (
            {"messages": [USER, USER | {"content": "well?"}, ANSWER | {"content": f"{i}"}]},
            {"messages": [USER | {"content": spelt}, ANSWER | {"content": f"{i}"}]},
        )
    ]
    data = DataConfig(source=str(write("c.jsonl", lines(rows))), kind="messages")
    prepared = prepare(data, TokenizerConfig(vocab_size=300))
    assert prepared.notes == ()
    assert sum(sum(side.values()) for side in prepared.documents_count.values()) == 24
