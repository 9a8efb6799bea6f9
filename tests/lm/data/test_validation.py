"""A validation source of its own: all of it is looked at, and all the rest is trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from expertise.errors import DataError, RecipeError
from expertise.lm.data import (
    DataConfig,
    Document,
    Prepared,
    SourceTable,
    TokenizerConfig,
    evaluation_windows,
    prepare,
    source_digest,
)

Write = Callable[[str, str | bytes], Path]
TOKENIZER = TokenizerConfig(vocab_size=300)


def rows(first: int, number: int) -> str:
    return "".join(
        json.dumps({"prompt": f"what is {i}?", "completion": f" it is {i}."}) + "\n"
        for i in range(first, first + number)
    )


def texts(prepared: Prepared, side: str) -> list[str]:
    return sorted(document.text for document in prepared.side(side))


def lines(word: str, number: int) -> str:
    return "\n\n".join(
        f"The {word} of valley {i} was counted, and it was found to be there on day {i}."
        for i in range(number)
    )


def test_records_are_not_divided(write: Write) -> None:
    data = DataConfig(
        source=str(write("train.jsonl", rows(0, 40))),
        validation=str(write("valid.jsonl", rows(100, 7))),
        kind="prompt",
    )
    prepared = prepare(data, TOKENIZER)
    assert texts(prepared, "train") == sorted(f"what is {i}? it is {i}." for i in range(40))
    assert texts(prepared, "validation") == sorted(f"what is {i}? it is {i}." for i in range(100, 107))
    assert prepared.domains == ("train", "valid")
    assert (prepared.domains_of("train"), prepared.domains_of("validation")) == (("train",), ("valid",))
    stream = prepared.stream("train")
    assert len(stream.starts) == 40
    assert prepared.tokens_count["train"] == {"train": len(stream.tokens), "valid": 0}
    windows = evaluation_windows(prepared, "validation", "valid", 0, 16)
    assert windows.num_documents == 7
    assert windows.num_bytes == sum(len(f" it is {i}.") for i in range(100, 107))
    for ask in (prepared.domains_of, prepared.stream, prepared.side):
        with pytest.raises(RecipeError, match="there is no test text"):
            ask("test")


def test_text_of_a_single_line_is_enough(write: Write) -> None:
    data = DataConfig(source=str(write("a.txt", lines("stone", 40))), validation=str(write("b.txt", "One.")))
    prepared = prepare(data, TOKENIZER)
    assert texts(prepared, "validation") == ["One."]
    assert prepared.bytes["train"] == {"a": len(lines("stone", 40)), "b": 0}


def test_tables_share_domains_with_the_source(write: Write) -> None:
    write("source/prose.txt", lines("stone", 20))
    write("source/code.jsonl", json.dumps({"body": lines("function", 20)}))
    held = write("held/prose.txt", lines("river", 5))
    data = DataConfig(
        source=[
            SourceTable(path=str(held.parents[1] / "source" / "prose.txt"), domain="prose"),
            SourceTable(path=str(held.parents[1] / "source" / "code.jsonl"), domain="code", field="body"),
        ],
        validation=[SourceTable(path=str(held), domain="prose")],
    )
    prepared = prepare(data, TOKENIZER)
    assert prepared.domains == ("prose", "code")
    assert prepared.domains_of("train") == ("prose", "code")
    assert prepared.domains_of("validation") == ("prose",)
    assert texts(prepared, "validation") == [lines("river", 5)]


@pytest.mark.parametrize("name", ["valid.jsonl", "valid"])
def test_a_validation_file_within_the_source_is_not_trained_on(write: Write, name: str) -> None:
    folder = write("data/a/train.jsonl", rows(0, 20)).parents[1]
    write("data/b/more.jsonl", rows(20, 20))
    write("data/valid.jsonl" if name == "valid.jsonl" else "data/valid/x.jsonl", rows(100, 9))
    prepared = prepare(
        DataConfig(source=str(folder), validation=str(folder / name), kind="prompt", deduplicate=False),
        TOKENIZER,
    )
    assert len(texts(prepared, "train")) == 40
    assert len(texts(prepared, "validation")) == 9
    assert any("data.validation" in note for note in prepared.notes)


def test_what_validation_has_is_not_trained_on(write: Write) -> None:
    source, held = write("s.jsonl", rows(0, 30) + rows(0, 3)), write("v.jsonl", rows(25, 10) + rows(25, 2))
    data = DataConfig(source=str(source), validation=str(held), kind="prompt")
    prepared = prepare(data, TOKENIZER)
    assert texts(prepared, "train") == sorted(f"what is {i}? it is {i}." for i in range(25))
    assert len(texts(prepared, "validation")) == 12, "validation text is kept as it is given"
    assert any(note.startswith("5 ") and "data.validation" in note for note in prepared.notes)
    paragraphs = DataConfig(
        source=str(write("s.txt", lines("stone", 30))), validation=str(write("v.txt", lines("stone", 4)))
    )
    mixed = prepare(paragraphs, TOKENIZER)
    assert "valley 3 " not in "".join(texts(mixed, "train"))
    assert "valley 4 " in "".join(texts(mixed, "train"))
    assert any(note.startswith("4 ") and "data.validation" in note for note in mixed.notes)
    whole = prepare(
        DataConfig(source=str(source), validation=str(held), kind="prompt", deduplicate=False), TOKENIZER
    )
    assert len(texts(whole, "train")) == 33


def test_the_cap_is_the_source_s(write: Write) -> None:
    data = DataConfig(
        source=str(write("s.txt", lines("stone", 90))),
        validation=str(write("v.txt", lines("river", 60))),
        cap_bytes=2000,
    )
    prepared = prepare(data, TOKENIZER)
    assert prepared.bytes["train"]["s"] <= 2000
    assert prepared.bytes["validation"]["v"] == len(lines("river", 60))


def test_the_digest_knows_both(write: Write) -> None:
    source, held = write("s.txt", lines("stone", 30)), write("v.txt", lines("river", 5))
    alone = DataConfig(source=str(source))
    both = DataConfig(source=str(source), validation=str(held))
    before = source_digest(both)
    assert source_digest(alone) != before
    write("v.txt", lines("river", 6))
    assert source_digest(both) != before
    assert source_digest(alone) == source_digest(DataConfig(source=str(source)))


def test_sources_that_leave_nothing_are_refused(write: Write) -> None:
    source = write("data/s.txt", lines("stone", 30))
    with pytest.raises(RecipeError, match=r"data\.validation is the same"):
        DataConfig(source=str(source), validation=str(source))
    with pytest.raises(DataError, match="nothing is left to train on"):
        prepare(DataConfig(source=str(source), validation=str(source.parent)), TOKENIZER)
    with pytest.raises(DataError, match="does not exist"):
        prepare(DataConfig(source=str(source), validation=str(source.parent / "none")), TOKENIZER)
    with pytest.raises(RecipeError, match="installed text has no records"):
        DataConfig(source=str(source), validation="installed", kind="prompt")
    other = write("v.txt", lines("river", 3))
    with pytest.raises(RecipeError, match=r"the validation text has none of data\.domains: s"):
        prepare(DataConfig(source=str(source), validation=str(other), domains=["s"]), TOKENIZER)
    copy = write("copy.txt", lines("stone", 30))
    with pytest.raises(DataError, match="no text left"):
        prepare(DataConfig(source=str(source), validation=str(copy)), TOKENIZER)


def test_documents_come_in_one_order_however_they_are_named(write: Write) -> None:
    """So that a run's own score on its validation source is that of the same file given to `evaluate`."""
    from expertise.lm.data import all_of

    source, held = write("s.jsonl", rows(0, 30)), write("v.jsonl", rows(100, 20))
    prepared = prepare(DataConfig(source=str(source), validation=str(held), kind="prompt"), TOKENIZER)
    given = all_of(DataConfig(source=str(held), kind="prompt"), prepared.tokenizer, lambda _: None)

    def ids(documents: list[Document]) -> list[str]:
        return [document.id for document in documents]

    assert ids(list(given.records("all", "v"))) == ids(list(prepared.records("validation", "v")))
