"""Rows that cannot be used: the first stops everything, or they are left out, counted, refused when many."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from expertise.errors import DataError, RecipeError
from expertise.lm.data import DataConfig, TokenizerConfig, open_sources, prepare
from expertise.lm.data.split import SPLITS

SMALL = TokenizerConfig(vocab_size=300)

GOOD: dict[str, Any] = {
    "text": lambda i: {"text": f"stone {i} lies there."},
    "prompt": lambda i: {"prompt": f"{i}?", "completion": f"{i}."},
    "messages": lambda i: {
        "messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}."}]
    },
}
EVERYWHERE = [b'{"text": ', b"[1]", b"null", b'{"other": 1}', b'{"text": "\xff"}', b"[" * 100_000, b'"\0"']
BAD = {
    "text": [*EVERYWHERE, b'{"text": null}', b'{"text": 3}'],
    "prompt": [*EVERYWHERE, b'{"prompt": "a", "completion": " "}', b'{"prompt": ["a"], "completion": "b"}'],
    "messages": [
        *EVERYWHERE,
        b'{"messages": "hello"}',
        b'{"messages": [{"role": "user", "content": "a"}]}',
        b'{"messages": [{"role": "usr", "content": "a"}]}',
    ],
}


def file_of(write, kind: str, number: int, bad: list[bytes]) -> tuple[Path, dict[int, bytes]]:
    """Good rows with bad ones between them, after the third; the bad ones by their line."""
    rows = [json.dumps(GOOD[kind](i)).encode() for i in range(number)]
    lines = [*rows[:3], *bad, *rows[3:]]
    path = write("q.jsonl", b"\n".join(lines) + b"\n")
    return path, {4 + i: row for i, row in enumerate(bad)}


@pytest.mark.parametrize("kind", list(GOOD))
def test_the_first_bad_row_stops_everything_and_says_how_to_go_on(write, kind: str) -> None:
    for bad in BAD[kind]:
        path, _ = file_of(write, kind, 9, [bad])
        with pytest.raises(DataError) as caught:
            prepare(DataConfig(source=str(path), kind=kind), SMALL)
        assert "\n" not in caught.value.message
        assert str(path) in caught.value.message
        assert "data.on_bad" in " ".join(caught.value.hints)


@pytest.mark.parametrize("kind", list(GOOD))
def test_bad_rows_are_skipped_and_counted(write, kind: str) -> None:
    path, bad = file_of(write, kind, 200, BAD[kind])
    prepared = prepare(DataConfig(source=str(path), kind=kind, on_bad="skip"), SMALL)
    (note,) = [note for note in prepared.notes if "cannot be used" in note]
    assert f"{len(bad)} of {200 + len(bad)} rows of q" in note
    assert f"{path}, line 4: " in note
    assert sum(prepared.documents_count[side]["q"] for side in SPLITS) == 200
    ids = {record.id for side in SPLITS for record in prepared.records(side, "q")}
    assert ids == {f"q.jsonl:{line}" for line in range(1, 201 + len(bad)) if line not in bad}


def test_without_bad_rows_skipping_says_nothing_and_gives_the_same(write) -> None:
    path, _ = file_of(write, "prompt", 50, [])
    strict, lax = (
        prepare(DataConfig(source=str(path), kind="prompt", on_bad=how), SMALL) for how in ("stop", "skip")
    )
    assert lax.notes == ()
    for side in SPLITS:
        assert list(lax.records(side, "q")) == list(strict.records(side, "q"))


@pytest.mark.parametrize(
    ("number", "share", "refused"), [(36, 0.1, False), (35, 0.1, True), (12, 0.5, False)]
)
def test_too_many_are_refused_with_the_first_and_the_counts(
    write, number: int, share: float, refused: bool
) -> None:
    path, _ = file_of(write, "prompt", number, [b"{", b"[2]", b"3", b'{"prompt": "a"}'])
    data = DataConfig(source=str(path), kind="prompt", on_bad="skip", bad_share=share)
    if not refused:
        prepare(data, SMALL)
        return
    with pytest.raises(DataError) as caught:
        prepare(data, SMALL)
    assert f"4 of {number + 4} rows of q" in caught.value.message
    assert "10 %" in caught.value.message
    assert f"{path}, line 4: not valid JSON" in caught.value.message
    assert "\n" not in caught.value.message
    assert "data.bad_share" in " ".join(caught.value.hints)


def test_too_many_are_refused_below_a_cap_too(write) -> None:
    path, _ = file_of(write, "prompt", 100, [b"{"] * 3)
    data = DataConfig(source=str(path), kind="prompt", on_bad="skip", cap_bytes=30)
    with pytest.raises(DataError, match="3 of 1"):
        prepare(data, SMALL)


def test_the_setting_is_part_of_the_cache(write) -> None:
    path, _ = file_of(write, "prompt", 100, [b"{"])
    data = DataConfig(source=str(path), kind="prompt", on_bad="skip")
    prepare(data, SMALL)
    with pytest.raises(DataError, match="line 4"):
        prepare(DataConfig(source=str(path), kind="prompt"), SMALL)
    with pytest.raises(DataError, match="1 of 101 rows"):
        prepare(DataConfig(source=str(path), kind="prompt", on_bad="skip", bad_share=0.001), SMALL)


def test_files_that_are_not_utf_8_are_skipped_like_rows(write, tmp_path: Path) -> None:
    for i in range(30):
        write(f"d/{i}.txt", f"stone {i} lies there.")
    write("d/latin.txt", b"caf\xe9")
    write("d/wide.txt", "stone".encode("utf-16"))
    with pytest.raises(DataError, match="is not UTF-8") as caught:
        prepare(DataConfig(source=str(tmp_path / "d")), SMALL)
    assert "data.on_bad" in " ".join(caught.value.hints)
    prepared = prepare(DataConfig(source=str(tmp_path / "d"), on_bad="skip"), SMALL)
    (note,) = prepared.notes
    assert "2 of 32 files of d" in note
    # A file alone cannot be left out, and nothing suggests it.
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(source=str(tmp_path / "d" / "latin.txt")), SMALL)
    assert "on_bad" not in " ".join(caught.value.hints)


def test_rows_of_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list):
        column_names = ("text",)

        def select_columns(self, _names):
            return self

    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda *_, **__: Rows([*({"text": f"stone {i}"} for i in range(30)), {"text": None}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    table = [{"hub": "someone/tales", "domain": "t"}]
    from expertise.lm.data import SourceTable

    sources = [SourceTable(**fields) for fields in table]
    (source,) = open_sources(DataConfig(source=sources, on_bad="skip"))
    assert len(list(source.documents())) == 30
    assert "1 of 31 rows of t" in source.notes()[0]
    (source,) = open_sources(DataConfig(source=sources))
    with pytest.raises(DataError, match="row 30"):
        list(source.documents())


@pytest.mark.parametrize("fields", [{"bad_share": -0.1}, {"bad_share": 1.5}])
def test_wrong_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        DataConfig(source="x", **fields)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_pointer_of_git_lfs_is_no_text(write, name: str) -> None:
    path = write(f"d/{name}", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    for source in (path, path.parent):
        with pytest.raises(DataError, match="Git LFS pointer") as caught:
            [list(one.documents()) for one in open_sources(DataConfig(source=str(source)))]
        assert "git lfs pull" in " ".join(caught.value.hints)
