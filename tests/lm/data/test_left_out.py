"""What is left out between a source and a batch is told in one note that says how much."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from expertise.errors import DataError
from expertise.lm.data import (
    Batches,
    DataConfig,
    SourceTable,
    TokenizerConfig,
    TokenStream,
    open_sources,
    prepare,
)
from expertise.lm.data.folders import files_under

SMALL = TokenizerConfig(vocab_size=300)
LONG = "This paragraph is certainly longer than sixty bytes, and it comes more than once."


def read(root: Path, pattern: str = "**/*") -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_under(root, pattern)[0]]


def said(root: Path, pattern: str = "**/*") -> str:
    return files_under(root, pattern)[1].in_words()


def texts(data: DataConfig) -> list[str]:
    return sorted(document.text for source in open_sources(data) for document in source.documents())


# --- links ----------------------------------------------------------------------------------------------


def test_a_link_to_a_folder_is_followed(write, tmp_path: Path) -> None:
    write("d/a.txt", "first")
    write("elsewhere/deep/b.txt", "second")
    (tmp_path / "d" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "d" / "c.txt").symlink_to(tmp_path / "elsewhere" / "deep" / "b.txt")
    assert read(tmp_path / "d") == ["a.txt", "c.txt", "more/deep/b.txt"]
    assert said(tmp_path / "d") == ""
    assert texts(DataConfig(source=str(tmp_path / "d"))) == ["first", "second", "second"]
    table = SourceTable(path=str(tmp_path / "d"), domain="d", pattern="more/**/*.txt")
    assert texts(DataConfig(source=[table])) == ["second"]


def test_a_folder_that_holds_the_source_is_not_read(write, tmp_path: Path) -> None:
    """Else recipes and runs that stand beside the source were text."""
    write("work/d/a.txt", "first")
    write("work/recipe.toml", "not text")
    for name, target in (("up", ".."), ("further", "../..")):
        (tmp_path / "work" / "d" / name).symlink_to(target, target_is_directory=True)
    assert read(tmp_path / "work" / "d") == ["a.txt"]
    assert said(tmp_path / "work" / "d") == "2 links to folders that hold this one"


def test_a_folder_that_is_itself_a_link_is_a_source(write, tmp_path: Path) -> None:
    write("elsewhere/b.txt", "second")
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert read(tmp_path / "d") == ["b.txt"]


def test_links_that_lead_back_end_there_and_are_counted(write, tmp_path: Path) -> None:
    write("d/x/a.txt", "first")
    write("d/y/b.txt", "second")
    root = tmp_path / "d"
    (root / "self").symlink_to(root, target_is_directory=True)
    (root / "x" / "up").symlink_to(root, target_is_directory=True)
    (root / "x" / "side").symlink_to(root / "y", target_is_directory=True)
    (root / "y" / "side").symlink_to(root / "x", target_is_directory=True)
    assert read(root) == ["x/a.txt", "y/b.txt"]
    assert said(root).startswith("4 links to folders")
    (note,) = [n for s in open_sources(DataConfig(source=str(root))) for n in s.notes()]
    assert "4 links to folders" in note


def test_many_folders_linked_to_one_another_are_read_once_each(write, tmp_path: Path) -> None:
    for i in range(12):
        write(f"all/{i}/{i}.txt", str(i))
    for i in range(12):
        for j in range(12):
            (tmp_path / "all" / str(i) / f"to{j}").symlink_to(tmp_path / "all" / str(j))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "in").symlink_to(tmp_path / "all" / "3")
    assert len(read(tmp_path / "all")) == 12
    assert sorted(Path(name).name for name in read(tmp_path / "d")) == sorted(f"{i}.txt" for i in range(12))


def test_links_that_lead_nowhere_and_pipes_are_counted(write, tmp_path: Path) -> None:
    write("d/a.txt", "first")
    (tmp_path / "d" / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d" / "round").symlink_to(tmp_path / "d" / "round")
    os.mkfifo(tmp_path / "d" / "pipe")
    assert read(tmp_path / "d") == ["a.txt"]
    assert "2 links that lead nowhere" in said(tmp_path / "d")
    assert "1 device, pipe or socket" in said(tmp_path / "d")


def test_a_folder_that_may_not_be_read_is_refused(write, tmp_path: Path, monkeypatch) -> None:
    write("d/a.txt", "first")
    (tmp_path / "d" / "closed").mkdir()
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"closed: Permission denied"):
        files_under(tmp_path / "d", "**/*")
    assert read(tmp_path / "d", "*.txt") == ["a.txt"], "a pattern that does not lead there does not look"


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*",
        "*",
        "*.txt",
        "**/*.txt",
        "a/**/*",
        "**/a/*",
        "a/*/*.txt",
        "*/*",
        "**/b/**/*",
        "[ab]/?.md",
        "./*",
    ],
)
def test_patterns_match_as_those_of_pathlib(write, tmp_path: Path, pattern: str) -> None:
    for name in ("x.txt", "y.md", "a/x.txt", "a/y.md", "a/b/x.txt", "a/b/c/x.txt", "b/y.md", "b/a/z.txt"):
        write(f"d/{name}", name)
    root = tmp_path / "d"
    expected = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
    assert read(root, pattern) == expected


def test_only_what_the_pattern_wants_is_counted(write, tmp_path: Path) -> None:
    write("d/a.txt", "text")
    write("d/.b.txt", "no")
    write("d/.DS_Store", "no")
    write("d/.git/config", "no")
    assert said(tmp_path / "d", "*.txt") == "1 hidden file"
    assert "2 hidden files" in said(tmp_path / "d")
    assert "1 hidden folder" in said(tmp_path / "d")


# --- folders of several domains -------------------------------------------------------------------------


def test_sub_folders_without_text_are_counted_too(write, tmp_path: Path) -> None:
    write("all/one/a.txt", "first")
    write("all/two/b.md", "second")
    write("all/pictures/c.png", b"\x89PNG\0\0")
    write("all/void/d.txt", "")
    write("all/.git/config", "x")
    notes = [note for s in open_sources(DataConfig(source=str(tmp_path / "all"))) for note in s.notes()]
    (note,) = notes
    for kind in ("1 binary file (6 bytes)", "1 empty file", "1 hidden folder"):
        assert kind in note


def test_a_folder_without_text_says_what_it_has(write, tmp_path: Path) -> None:
    write("d/.a.txt", "hidden")
    write("d/b.bin", b"\0")
    with pytest.raises(DataError, match="holds no text") as caught:
        open_sources(DataConfig(source=str(tmp_path / "d")))
    assert any("1 hidden file" in hint and "1 binary file" in hint for hint in caught.value.hints)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "n,text\n1,one\n", True),
        ("a.tsv", "n\ttext\n", True),
        ("a.json", '[{"text": "one"}]', True),
        ("a.txt", '{"text": "one"}\n{"text": "two"}\n', True),
        ("a.log", '\ufeff[\n {"text": "one"}]', True),
        ("a.txt", "{braces} in prose", False),
        ("a.jsonl", '{"text": "one"}\n', False),
    ],
)
def test_rows_that_are_read_as_plain_text_are_told(
    write, tmp_path: Path, name: str, content: str, told: bool
) -> None:
    path = write(f"d/{name}", content)
    for source in (path, path.parent):
        (opened,) = open_sources(DataConfig(source=str(source)))
        notes = opened.notes()
        assert bool(notes) is told
        if told:
            assert f"1 CSV or JSON file ({len(content.encode())} bytes)" in notes[0]


# --- from documents to batches --------------------------------------------------------------------------


def note_of(notes: tuple[str, ...], words: str) -> str:
    (found,) = [note for note in notes if words in note]
    return found


def test_paragraphs_that_were_met_before_are_counted(write, tmp_path: Path) -> None:
    write("a.txt", "\n\n".join(f"{LONG} {i}" for i in range(50)))
    write("b.txt", "\n\n".join(f"{LONG} {i}" for i in range(40, 100)))
    tables = [SourceTable(path=str(tmp_path / f"{name}.txt"), domain=name) for name in "ab"]
    note = note_of(prepare(DataConfig(source=tables), SMALL).notes, "met before")
    assert "10 paragraphs" in note
    assert f"({10 * len(f'{LONG} 40'):,} bytes)" in note
    assert not prepare(DataConfig(source=tables, deduplicate=False), SMALL).notes


def test_blank_documents_are_counted(write, tmp_path: Path) -> None:
    for i in range(30):
        write(f"d/{i}.txt", f"line {i}\n" * 9)
    write("d/blank.txt", " \n\n ")
    write("d/empty.txt", "")
    write("d/mark.txt", b"\xef\xbb\xbf\n")
    notes = prepare(DataConfig(source=str(tmp_path / "d")), SMALL).notes
    assert "3 documents of nothing but white space" in note_of(notes, "white space")


@pytest.mark.parametrize("cap", [1000, 500, 10_000_000])
def test_a_cap_says_what_it_keeps(write, tmp_path: Path, cap: int) -> None:
    for i in range(10):
        write(f"d/{i}.txt", f"{i}" * 99 + "\n")
        write(f"more/{i}.txt", f"{i}" * 199 + "\n")
    tables = [SourceTable(path=str(tmp_path / name), domain="d") for name in ("d", "more")]
    prepared = prepare(DataConfig(source=tables, cap_bytes=cap), SMALL)
    if cap > 3000:
        assert not prepared.notes
        return
    note = note_of(prepared.notes, "cap_bytes")
    assert note.startswith("left out of d:")
    assert f"{cap:,} bytes in {cap // 100} documents are kept" in note
    assert "3,000 bytes" in note


def test_a_cap_that_nothing_crosses_is_silent(write, tmp_path: Path) -> None:
    for i in range(10):
        write(f"d/{i}.txt", f"{i}" * 99 + "\n")
    assert not prepare(DataConfig(source=str(tmp_path / "d"), cap_bytes=1000), SMALL).notes


def test_domains_that_are_not_asked_for_are_told(corpus: Path) -> None:
    whole = prepare(DataConfig(source=str(corpus)), SMALL)
    note = note_of(prepare(DataConfig(source=str(corpus), domains=["birds"]), SMALL).notes, "data.domains")
    total = sum(whole.bytes[side]["stones"] for side in whole.bytes)
    assert f"stones ({total:,} bytes)" in note
    assert "birds" not in note
    assert not whole.notes


def test_the_end_of_a_stream_that_fills_no_window_is_told() -> None:
    def notes(number: int) -> list[str]:
        stream = TokenStream(np.zeros(number, dtype=np.uint16), np.array([0]), np.array([0]), ("a",))
        return Batches(stream, context=16, batch_size=2, seed=0).notes()

    assert notes(65) == []
    (note,) = notes(70)
    assert "the last 5 of 70 training tokens" in note


def test_the_notes_are_the_same_from_the_cache(write, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(40)]
    path = write("d/q.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    write("d/.hidden", "x")
    data = DataConfig(source=str(path.parent), kind="prompt")
    first = prepare(data, SMALL)
    assert len(first.notes) == 2
    assert prepare(data, SMALL).notes == first.notes
