"""Files whose names or contents are not UTF-8: names are read and shown escaped, encodings are named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from expertise.errors import DataError
from expertise.lm.data import DataConfig, SourceTable, TokenizerConfig, open_sources, prepare, source_digest
from expertise.lm.data.split import SPLITS

SMALL = TokenizerConfig(vocab_size=300)


def put(folder: Path, name: bytes, content: str | bytes) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def is_utf8(value: object) -> bool:
    json.dumps(value, ensure_ascii=False).encode()
    return True


@pytest.mark.parametrize(
    "name", [b"caf\xe9.txt", b"\xff\xfe.txt", b"sub\xe9/a.txt", "日本😀'\"\n.txt".encode()]
)
def test_a_file_of_any_name_is_read_and_shown(tmp_path: Path, name: bytes) -> None:
    for i in range(100):
        put(tmp_path / "d", b"%d.txt" % i, f"stone {i:02} lies there.")
    put(tmp_path / "d", name, "it is nowhere else.")
    prepared = prepare(DataConfig(source=str(tmp_path / "d")), SMALL)
    records = [record for side in SPLITS for record in prepared.records(side, "d")]
    assert len(records) == 101
    (found,) = [record for record in records if "nowhere else" in record.text]
    assert is_utf8(found.id)
    assert found.id == name.decode("utf-8", "backslashreplace")


def test_two_names_that_look_alike_are_two_documents(tmp_path: Path) -> None:
    put(tmp_path / "d", b"caf\xe9.txt", "first")
    put(tmp_path / "d", b"caf\\xe9.txt", "second")
    (source,) = open_sources(DataConfig(source=str(tmp_path / "d")))
    assert sorted(document.text for document in source.documents()) == ["first", "second"]
    before = source_digest(DataConfig(source=str(tmp_path / "d")))
    put(tmp_path / "d", b"caf\xe9.txt", "second")
    put(tmp_path / "d", b"caf\\xe9.txt", "first")
    assert source_digest(DataConfig(source=str(tmp_path / "d"))) != before


def test_sub_folders_and_records_with_such_names(tmp_path: Path) -> None:
    for folder in (b"b\xe9", b"c"):
        rows = "".join(
            json.dumps({"prompt": f"{folder!r} {i}?", "completion": f"{i}."}) + "\n" for i in range(40)
        )
        put(tmp_path / "d", folder + b"/q\xff.jsonl", rows)
    prepared = prepare(DataConfig(source=str(tmp_path / "d"), kind="prompt"), SMALL)
    assert prepared.domains == (r"b\xe9", "c")
    assert is_utf8(prepared.notes)
    for domain in prepared.domains:
        for record in prepared.records("train", domain):
            assert record.id.startswith((r"b\xe9/q\xff.jsonl:", r"c/q\xff.jsonl:"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"caf\xe9.txt", b"caf\xe9"),
        (b"caf\xe9.jsonl", b"{"),
        (b"caf\xe9.jsonl", b'{"text": 3}'),
        (b"caf\xe9.parquet", b"PAR1\0"),
    ],
)
def test_messages_and_notes_show_names_escaped(tmp_path: Path, name: bytes, content: bytes) -> None:
    for i in range(30):
        put(tmp_path / "d\xe9", b"%d.txt" % i, f"stone {i} lies there.")
    put(tmp_path / "d\xe9", name, content)
    with pytest.raises(Exception, match=r"caf\\xe9") as caught:
        prepare(DataConfig(source=str(tmp_path / "d\xe9")), SMALL)
    assert is_utf8([*caught.value.args, *caught.value.hints])
    if b"parquet" not in name:
        prepared = prepare(DataConfig(source=str(tmp_path / "d\xe9"), on_bad="skip"), SMALL)
        assert is_utf8(prepared.notes)
        assert r"caf\xe9" in " ".join(prepared.notes)


# --- encodings ------------------------------------------------------------------------------------------

ENCODINGS = [
    ("utf-16", "UTF-16"),
    ("utf-32", "UTF-32"),
    ("utf-16-be", "UTF-16"),
    ("utf-32-be", "UTF-32"),
]


def encoded(text: str, encoding: str) -> bytes:
    return (text if encoding in ("utf-16", "utf-32") else "\ufeff" + text).encode(encoding)


@pytest.mark.parametrize(("encoding", "name"), ENCODINGS)
@pytest.mark.parametrize("text", ["plain words\nand more\n", "漢字" * 40, "é" * 5000])
@pytest.mark.parametrize("ending", ["txt", "jsonl", "csv"])
def test_the_hint_names_the_encoding_that_the_mark_tells(
    write, tmp_path: Path, encoding: str, name: str, text: str, ending: str
) -> None:
    content = json.dumps({"text": text}, ensure_ascii=False) if ending == "jsonl" else text
    path = write(f"d/a.{ending}", encoded(content, encoding))
    write("d/b.txt", "fine")
    for source in (path, path.parent):
        with pytest.raises(DataError, match="is not UTF-8") as caught:
            [document for s in open_sources(DataConfig(source=str(source))) for document in s.documents()]
        hints = " ".join(caught.value.hints)
        assert f"-f {name}" in hints
        assert "latin1" not in hints
    raw = path.read_bytes()
    path.write_bytes(raw.decode(name).encode("utf-8"))  # as iconv does
    assert len([d for s in open_sources(DataConfig(source=str(path))) for d in s.documents()]) == 1


def test_a_binary_file_that_begins_like_a_mark_is_binary(write, tmp_path: Path) -> None:
    write("d/a.txt", "text")
    write("d/b.bin", b"\xff\xfe\x00\xd8\x00\x00" + bytes(range(256)) * 9)
    (source,) = open_sources(DataConfig(source=str(tmp_path / "d")))
    assert [document.text for document in source.documents()] == ["text"]
    assert "1 binary file" in source.notes()[0]


@pytest.mark.parametrize("kind", ["text", "prompt", "messages"])
def test_a_utf_8_mark_is_no_part_of_the_text(write, kind: str) -> None:
    row = {
        "text": "é",
        "prompt": "a",
        "completion": "b",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    line = json.dumps(row).encode()
    path = write("q.jsonl", b"\xef\xbb\xbf" + line + b"\n\xef\xbb\xbf" + line + b"\n")
    (source,) = open_sources(DataConfig(source=[SourceTable(path=str(path), domain="q")], kind=kind))
    first, second = source.documents()
    assert first.text == second.text
    assert "\ufeff" not in first.text
    plain = [f"line {i}\n" for i in range(90)]
    path = write("t.txt", b"\xef\xbb\xbf" + "".join(plain).encode())
    prepared = prepare(DataConfig(source=str(path)), SMALL)
    assert "\ufeff" not in "".join(text for side in SPLITS for text in prepared.documents(side, "t"))
