from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from pathlib import Path

import pytest

from expertise.errors import ExpertiseError, MissingExtra, RecipeError
from expertise.lm.data import DataConfig, SourceTable, TokenizerConfig, open_sources, source_digest
from expertise.lm.data.documents import normalise


def texts(data: DataConfig) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for source in open_sources(data):
        for document in source.documents():
            found.setdefault(document.domain, []).append(document.text)
    return found


def message(data: DataConfig) -> str:
    with pytest.raises(ExpertiseError) as caught:
        texts(data)
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


def test_a_recipe_must_name_data() -> None:
    assert "the recipe names no data: set data.source" in message(DataConfig())
    assert "set data.source" in message(DataConfig(source=[]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SourceTable(domain="x"),
        lambda: SourceTable(path="a", hub="b", domain="x"),
        lambda: SourceTable(path="a", domain=""),
        lambda: SourceTable(path="a", domain="mean"),
        lambda: SourceTable(path="a", domain="x", pattern="../*"),
        lambda: DataConfig(source="a", cap_bytes=-1),
        lambda: TokenizerConfig(vocab_size=100),
        lambda: TokenizerConfig(train_bytes=0),
    ],
)
def test_rules_hold_for_configs_built_in_python(wrong) -> None:
    with pytest.raises(RecipeError):
        wrong()


def test_a_bare_file_is_a_domain_named_after_it(write) -> None:
    assert texts(DataConfig(source=str(write("poems.txt", "a rose")))) == {"poems": ["a rose"]}


def test_sub_folders_with_text_are_domains(write, tmp_path: Path) -> None:
    write("all/one/a.txt", "first")
    write("all/two/deep/b.md", "second")
    write("all/pictures/c.png", b"\x89PNG\0\0")
    write("all/readme.txt", "loose")
    assert texts(DataConfig(source=str(tmp_path / "all"))) == {
        "all": ["loose"],
        "one": ["first"],
        "two": ["second"],
    }


def test_a_folder_with_one_sub_folder_is_one_domain(write, tmp_path: Path) -> None:
    write("book/text/a.txt", "first")
    write("book/b.txt", "second")
    assert {k: sorted(v) for k, v in texts(DataConfig(source=str(tmp_path / "book"))).items()} == {
        "book": ["first", "second"]
    }


def test_hidden_and_binary_files_of_a_folder_are_passed_over(write, tmp_path: Path) -> None:
    write("d/a.txt", "text")
    write("d/.hidden.txt", "no")
    write("d/.git/config", "no")
    write("d/b.bin", b"ab\0c")
    (source,) = open_sources(DataConfig(source=str(tmp_path / "d")))
    assert [document.text for document in source.documents()] == ["text"]
    (note,) = source.notes()
    for kind in ("1 hidden file", "1 hidden folder", "1 binary file (4 bytes)"):
        assert kind in note


def test_json_lines(write) -> None:
    path = write("q.jsonl", '{"question": "why?"}\n\n{"question": "how?"}\n')
    table = SourceTable(path=str(path), domain="q", field="question")
    assert texts(DataConfig(source=[table])) == {"q": ["why?", "how?"]}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"abc\xff\n", "is not UTF-8: byte 3"),
        ("a.bin", b"ab\0c", "is not a text file"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2: a list, not an object"),
        ("a.jsonl", b'{"texts": "x"}\n', "line 1: no field 'text' | did you mean 'texts'?"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is a number, not text"),
        ("a.ndjson", b'{"text": "x"}\n{"text": "\xff"}\n', "is not UTF-8: byte 24"),
    ],
)
def test_a_bad_file_is_named_with_the_place(write, name: str, content: bytes, expected: str) -> None:
    path = write(name, content)
    found = message(DataConfig(source=str(path)))
    assert expected in found
    assert str(path) in found


def test_missing_paths_and_folders_without_text(write, tmp_path: Path) -> None:
    assert "nowhere.txt does not exist" in message(DataConfig(source=str(tmp_path / "nowhere.txt")))
    write("d/a.bin", b"\0")
    assert "holds no text" in message(DataConfig(source=str(tmp_path / "d")))
    (tmp_path / "empty").mkdir()
    assert "holds no text" in message(DataConfig(source=str(tmp_path / "empty")))
    assert "neither a file nor a folder" in message(DataConfig(source="/dev/null"))
    write("e/a.txt", "fine")
    write("e/b.txt", b"\xe9t\xe9")
    assert "b.txt is not UTF-8: byte 0" in message(DataConfig(source=str(tmp_path / "e")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(write) -> None:
    path = write("a.txt", "secret")
    path.chmod(0)
    assert "permission" in message(DataConfig(source=str(path))).lower()


def test_parquet_without_its_packages_names_the_extra(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write("a.parquet", b"PAR1\0")
    with pytest.raises(MissingExtra, match=r"a\.parquet") as caught:
        texts(DataConfig(source=str(path)))
    assert caught.value.hints == ("pip install 'expertise[data]'",)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow (extra data) is absent")
def test_parquet(tmp_path: Path, write) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "t.parquet")
    assert texts(DataConfig(source=str(tmp_path / "t.parquet"))) == {"t": ["a", "b"]}
    table = SourceTable(path=str(tmp_path / "t.parquet"), domain="t", field="txt")
    assert "no column 'txt' | did you mean 'text'?" in message(DataConfig(source=[table]))
    assert "not a readable Parquet" in message(DataConfig(source=str(write("bad.parquet", b"PAR1\0"))))


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list):
        column_names = ("body", "label")

        def select_columns(self, _names):
            return self

    def load_dataset(name, configuration, split):
        if name != "someone/tales":
            raise FileNotFoundError("no such data set\nand more")
        assert (configuration, split) == ("short", "train")
        return Rows([{"body": "once"}, {"body": "upon"}])

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    fake.load_dataset_builder = lambda name, configuration: types.SimpleNamespace(
        hash="v1", config=types.SimpleNamespace(name=configuration)
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)

    def data(hub: str, field: str) -> DataConfig:
        return DataConfig(source=[SourceTable(hub=hub, domain="tales", field=field)])

    assert texts(data("someone/tales:short", "body")) == {"tales": ["once", "upon"]}
    assert "no column 'bodi' | did you mean 'body'?" in message(data("someone/tales:short", "bodi"))
    assert "cannot load 'x/y' from the hub: no such data set" in message(data("x/y", "body"))
    first = source_digest(data("someone/tales:short", "body"))
    assert first != source_digest(data("someone/tales:short", "label"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "not installed" in message(data("someone/tales:short", "body"))


def test_the_digest_follows_content_names_and_domain_but_not_the_place(write, tmp_path: Path) -> None:
    def digest(folder: str, domain: str = "d") -> str:
        return source_digest(DataConfig(source=[SourceTable(path=str(tmp_path / folder), domain=domain)]))

    write("one/a.txt", "text")
    write("two/a.txt", "text")
    write("other/a.txt", "texT")
    write("renamed/b.txt", "text")
    first = digest("one")
    assert first == digest("two")
    assert len({first, digest("other"), digest("renamed"), digest("one", "e")}) == 4


def test_normalise() -> None:
    assert normalise("\ufeffa\r\nb\rc") == "a\nb\nc"
    assert normalise(json.loads('"\\ud83d\\ude00 \\ud800"')) == "😀 \ufffd"
