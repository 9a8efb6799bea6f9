"""Kills, several writers, damage and full disks: nothing is lost, everything is named.

`make test-faults` runs the long lists; a few of each run in `make test`.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import writers
from faulty import DAMAGE, wait_until
from judges import made_up

from expertise.errors import DiskError, SkillError
from expertise.skills import Library
from expertise.skills.card import CARD
from expertise.skills.peft_config import CONFIG, WEIGHTS

Make = Callable[..., Any]
KILLS = 20


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "skills")
    for name in writers.PARENTS:
        writers.add(library, name)
    return library


def half_written(library: Library) -> list[Path]:
    """What is being written, or was when a writer died."""
    folders = (library.path, library.path.parent / "out", *(library.path / name for name in library.names()))
    return [p for f in folders if f.is_dir() for p in f.glob(".*") if p.name.endswith((".part", ".old"))]


def check(library: Library, done: set[str]) -> None:
    """Every skill is whole and what its name says; whatever was done is there."""
    found = library.verify()
    assert found.ok, found.to_json()
    names = set(library.names())
    assert names >= {*writers.PARENTS, *(name for name in done if name.startswith(("add", "merge")))}
    for name in names:
        skill = library.load(name)
        wanted = writers.sum_of_parents() if name.startswith("merge") else writers.skill_called(name)
        if not name.startswith("rename"):
            assert writers.same(skill, wanted), name
        assert skill.card is not None
        assert bool(skill.card.parents) == name.startswith("merge")
    exports = library.path.parent / "out"
    exported = {p.name for p in exports.glob("export-*")}
    assert exported >= {name for name in done if name.startswith("export")}
    for name in exported:
        for file in (CONFIG, WEIGHTS):
            assert (exports / name / file).read_bytes() == (library.path / "one" / file).read_bytes()


def kill_again_and_again(library: Library, start: Make, tmp_path: Path, kind: str, kills: int) -> int:
    """How many of the kills met something half-written."""
    dice, met, log = random.Random(kind), 0, tmp_path / "log"
    if kind == "rename":
        writers.add(library, "rename")
    for number in range(kills):
        before = set(half_written(library))
        process = start(writers.write_slowly, str(library.path), kind, number, str(log))
        lines = log.read_bytes().count(b"\n") if log.exists() else 0
        if number % 3:
            wait_until(lambda lines=lines: log.exists() and log.read_bytes().count(b"\n") > lines, process)
        if number % 3 == 1:
            wait_until(lambda before=before: not set(half_written(library)) <= before, process)
        time.sleep(dice.random() * 0.06)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
        met += not set(half_written(library)) <= before
        check(library, set(log.read_text().split()) if log.exists() else set())
    return met


def sweep(library: Library) -> None:
    """The next writers find left-overs and remove them."""
    writers.add(library, "last")
    writers.export(library, "last")
    assert not [p for p in half_written(library) if p.parent == library.path]
    assert sorted(p.name for p in library.path.iterdir() if p.name.startswith(".")) == [".lock"]


@pytest.mark.parametrize("kind", writers.WORK)
def test_a_killed_writer_leaves_nothing_half_done(
    library: Library, start: Make, tmp_path: Path, kind: str
) -> None:
    kill_again_and_again(library, start, tmp_path, kind, 2)
    sweep(library)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("kind", writers.WORK)
def test_many_kills_lose_nothing(library: Library, start: Make, tmp_path: Path, kind: str) -> None:
    met = kill_again_and_again(library, start, tmp_path, kind, KILLS)
    assert met >= 3, "too few kills met something half-written"
    sweep(library)


def test_an_export_that_was_killed_is_swept_by_the_next_one(library: Library, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (".x.0123abcd.part", ".other.0123abcd.part"):
        (out / name).mkdir(parents=True)
        (out / name / WEIGHTS).write_bytes(b"half")
    (out / ".x.lock").touch()
    library.export_peft("one", out / "x")
    assert sorted(path.name for path in out.iterdir()) == [".other.0123abcd.part", "x"]


def test_left_overs_are_no_skills_and_are_swept_by_the_next_writer_only(library: Library) -> None:
    shutil.copytree(library.path / "one", library.path / ".three.0123abcd.part")
    shutil.copytree(library.path / "one", library.path / ".four.0123abcd.old")
    (library.path / "one" / f".{CARD}.0123abcd.part").write_text("{")
    (library.path / ".git").mkdir()
    assert library.names() == ["one", "two"]
    assert library.verify().ok
    assert library.verify().skills[0].notes == ()
    assert len(half_written(library)) == 3
    writers.add(library, "last")
    assert half_written(library) == []
    assert (library.path / ".git").is_dir()


def test_writers_at_once_lose_nothing(start: Make, tmp_path: Path) -> None:
    library, log = Library(tmp_path / "skills"), tmp_path / "log"
    processes = [start(writers.write, str(library.path), "add", number, str(log), 8) for number in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert library.names() == sorted(f"add-{number}-{turn}" for number in range(3) for turn in range(8))
    assert sorted(log.read_text().split()) == library.names()
    for name in library.names():
        assert writers.same(library.load(name), writers.skill_called(name))


def test_a_writer_that_does_not_end_is_named(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    from expertise.skills import folders

    monkeypatch.setattr(folders, "_WAIT", 0.05)
    with (
        FileLock(library.path / ".lock"),
        pytest.raises(SkillError, match=r"skills is in use by another process$") as caught,
    ):
        writers.add(library, "x")
    assert caught.value.hints == ("wait for it, or stop it first",)
    library.load("one")


@pytest.mark.parametrize("damage", sorted(DAMAGE))
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, CARD, "README.md"])
def test_each_file_damaged_in_each_way_is_named_by_all_who_want_it(
    library: Library, tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = library.export_peft("one", tmp_path / "plain")
    (plain / "README.md").write_text("It walks.\n")
    library.import_peft(plain, name="three")
    DAMAGE[damage](library.path / "three" / name)
    check = library.verify().skills[1]
    assert check.name == "three"
    if (name, damage) == (CARD, "removed"):
        # Nothing is known to be wrong, and that nothing is known is said.
        assert len(check.missing) > 8
        library.load("three")
        assert (
            capsys.readouterr().err
            == f"{library.path / 'three'} has no card.json: taken as it is, unverified\n"
        )
        return
    assert not library.verify().ok
    how = "is missing" if damage == "removed" else "is not what was written"
    assert check.problems == (f"damaged skill {library.path / 'three'}: {name} {how}",)
    for attempt in (
        lambda: library.load("three"),
        lambda: library.export_peft("three", tmp_path / "x"),
        lambda: library.merge(["one", "three"], name="x"),
        lambda: library.compare(),
        lambda: library.add(made_up(writers.NET), name="x", parents=["three"]),
        lambda: library.import_peft(library.path / "three"),
    ):
        with pytest.raises(SkillError) as caught:
            attempt()
        assert caught.value.message == check.problems[0]
    assert library.names() == ["one", "three", "two"]
    assert writers.same(library.load("one"), writers.skill_called("one"))
    library.remove("three")
    assert library.verify().ok


def test_verify_tells_what_else_it_found(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    (library.path / "notes").mkdir()
    (library.path / "one" / "training.log").write_text("…")
    (library.path / "two" / CARD).unlink()
    settings = library.path / "two" / CONFIG
    settings.write_text(settings.read_text().replace('"use_dora": false', '"use_dora": true'))
    found = library.verify()
    assert found.others == ("notes",)
    assert found.skills[0].lines() == [
        "one: whole",
        "  training.log is not in its card",
        "  the card does not say: purpose, base, data, data_digest",
    ]
    assert found.skills[1].problems == (
        f"{library.path / 'two'} cannot be composed: use_dora is set, "
        "and DoRA also rescales the base's own weights",
    )
    assert found.to_json()["ok"] is False
    with pytest.raises(SkillError, match="no library at"):
        Library(library.path / "none").verify()


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_skill(small_tmpfs: Path) -> None:
    library = Library(small_tmpfs / "skills")
    writers.add(library, "one")
    big = made_up({"w": (8, 40_000, 16)})
    with pytest.raises(DiskError, match=r"cannot write .*/skills/big: No space left on device") as caught:
        library.add(big, name="big")
    assert caught.value.hints == ("free some space there",)
    assert half_written(library) == []
    assert library.names() == ["one"]
    assert library.verify().ok
    other = Library(small_tmpfs.parent / "other")
    other.add(big, name="big")
    with pytest.raises(DiskError, match="No space left on device"):
        other.export_peft("big", small_tmpfs / "out")
    assert sorted(path.name for path in small_tmpfs.iterdir()) == ["skills"]
    writers.add(library, "two")


def test_a_limit_on_the_size_of_files_is_one_line(library: Library, start: Make, tmp_path: Path) -> None:
    process = start(writers.write_limited, str(library.path), 500, str(tmp_path / "log"))
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == f"cannot write {library.path / 'x'}: File too large\n"
    assert library.names() == ["one", "two"]
    assert half_written(library) == []


def test_a_file_that_cannot_be_read_is_named(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(
        SkillError, match=rf"damaged skill .*one: {CONFIG} cannot be read: Input/output error"
    ):
        library.load("one")
    monkeypatch.setattr(Path, "read_text", failing)
    with pytest.raises(SkillError, match=rf"{CARD} cannot be read: Input/output error"):
        library.card("one")


def test_weights_that_are_read_are_the_weights_that_were_checked(library: Library) -> None:
    """A file changed after loading changes nothing that was loaded."""
    skill = library.load("one")
    DAMAGE["emptied"](library.path / "one" / WEIGHTS)
    assert writers.same(skill, writers.skill_called("one"))
    assert all(torch.isfinite(made.A).all() for made in skill.factors.values())
