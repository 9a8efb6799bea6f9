"""Files and folders appear whole or not at all."""

from __future__ import annotations

import codecs
import errno
import os
from pathlib import Path

import pytest

from expertise.errors import DiskError
from expertise.runs import files
from expertise.runs.files import encoding_hint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    files.write_atomic(path, "old")
    files.write_atomic(path, "nü".encode())
    assert path.read_text("utf-8") == "nü"
    assert names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_file_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(DiskError, match=r"cannot write .*a\.txt: No space left") as caught:
        files.write_atomic(tmp_path / "a.txt", "new")
    assert caught.value.hints == ("free some space there",)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT])
def test_other_disk_trouble_is_one_line(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(DiskError, match=f"cannot write .*: {os.strerror(code)}$"),
        files.disk_errors(tmp_path),
    ):
        raise OSError(code, os.strerror(code))


def test_errors_that_are_not_the_disks_pass() -> None:
    with pytest.raises(FileNotFoundError), files.disk_errors(Path("x")):
        Path("/nowhere/at/all").read_text()


def test_a_path_where_no_file_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y", tmp_path / "folder"):
        for write in (lambda p: files.write_atomic(p, "new"), files.require_writable):
            with pytest.raises(DiskError, match=f"^cannot write {path}: "):
                write(path)
    with pytest.raises(DiskError), files.atomic_folder(tmp_path / "file" / "x"):
        pass
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"
    files.require_writable(tmp_path / "new" / "x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_relative_path_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(DiskError, match=r"^cannot write folder: Is a directory$"):
        files.write_atomic(Path("folder"), "new")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "new") as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "a").write_text("1")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "inner" / "a").read_text() == "1"
    assert names(tmp_path) == ["new"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_a_folder_stays_when_filling_it_fails(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("old")

    def fill() -> None:
        with files.atomic_folder(tmp_path / "here") as aside:
            (aside / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fill()
    assert (tmp_path / "here" / "a").read_text() == "old"
    assert names(tmp_path) == ["here"]


@pytest.mark.parametrize("call", [1, 2])
def test_a_folder_stays_when_moving_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("old")
    replace, calls = os.replace, iter(range(1, 9))

    def fail(*paths: Path) -> None:
        if next(calls) == call:
            full()
        replace(*paths)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DiskError), files.atomic_folder(tmp_path / "here") as aside:
        (aside / "a").write_text("new")
    assert (tmp_path / "here" / "a").read_text() == "old"
    assert names(tmp_path) == ["here"]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("größer".encode("utf-16"), "UTF-16"),
        (codecs.BOM_UTF16_BE + "größer".encode("utf-16-be"), "UTF-16"),
        ("größer".encode("utf-32"), "UTF-32"),
        (codecs.BOM_UTF32_BE + "größer".encode("utf-32-be"), "UTF-32"),
        ("größer".encode("utf-16-le"), "UTF-16LE"),
        ("größer".encode("utf-16-be"), "UTF-16BE"),
    ],
)
def test_the_hint_for_other_encodings_names_one_that_reads_them(raw: bytes, name: str) -> None:
    assert f"iconv -f {name} -t UTF-8" in encoding_hint(raw)
    assert raw.decode(name).removeprefix("\ufeff") == "größer"


def test_the_hint_for_an_encoding_that_nothing_tells_leaves_it_open() -> None:
    for raw in (b"caf\xe9", codecs.BOM_UTF8 + b"caf\xe9", bytes(range(256)), b""):
        assert "UTF-16" not in encoding_hint(raw)
        assert "iconv -f …" in encoding_hint(raw)
