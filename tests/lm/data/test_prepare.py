from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from expertise.errors import DataError, DiskError, RecipeError
from expertise.lm.data import DataConfig, TokenizerConfig, prepare, source_digest
from expertise.lm.data.cache import cache_root, entry, key_of
from expertise.lm.data.split import SPLITS

SMALL = TokenizerConfig(vocab_size=300)


def files_of(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_streams_hold_every_document_after_an_end_of_text(corpus: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    for side in SPLITS:
        stream = prepared.stream(side)
        assert stream.tokens.dtype == np.uint16
        assert np.array_equal(np.flatnonzero(stream.tokens == prepared.end_of_text), stream.starts)
        found: dict[str, list[str]] = {domain: [] for domain in prepared.domains}
        for start, stop, owner in zip(
            stream.starts, [*stream.starts[1:], len(stream.tokens)], stream.domain_ids, strict=True
        ):
            text = prepared.tokenizer.decode(stream.tokens[start + 1 : stop].tolist())
            found[prepared.domains[owner]].append(text)
        assert found == {domain: list(prepared.documents(side, domain)) for domain in prepared.domains}
        owners = stream.domain_of(np.arange(len(stream.tokens)))
        for i, domain in enumerate(prepared.domains):
            assert (owners == i).sum() == prepared.tokens_count[side][domain]
            assert len(found[domain]) == prepared.documents_count[side][domain]


@pytest.mark.parametrize("at_once", [7, 8_000_000])
def test_frequencies_of_ids(corpus: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("expertise.lm.data.streams._TOKENS_AT_ONCE", at_once)
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    stream = prepared.stream("train")
    expected = [0] * (prepared.vocab_size + 5)
    for token in stream.tokens.tolist():
        expected[token] += 1
    assert stream.frequencies(prepared.vocab_size + 5).tolist() == expected


def test_domains_are_mixed_in_the_training_stream(corpus: Path) -> None:
    owners = prepare(DataConfig(source=str(corpus)), SMALL).stream("train").domain_ids
    assert (np.diff(owners) != 0).sum() > len(owners) // 4


def test_unknown_sides_and_domains(corpus: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    with pytest.raises(KeyError, match="no split 'dev'"):
        prepared.stream("dev")
    with pytest.raises(KeyError, match="no domain 'fish'"):
        prepared.documents("test", "fish")


def test_the_second_time_nothing_is_built(corpus: Path) -> None:
    said: list[str] = []
    first = prepare(DataConfig(source=str(corpus)), SMALL, said.append)
    assert said == ["reading birds", "reading stones", "training the tokenizer", "encoding the text"]
    second = prepare(DataConfig(source=str(corpus)), SMALL, said.append)
    assert len(said) == 4
    assert first.digest == second.digest == source_digest(DataConfig(source=str(corpus)))
    prepare(DataConfig(source=str(corpus)), TokenizerConfig(vocab_size=290), said.append)
    assert said[4:] == ["training the tokenizer", "encoding the text"]


def test_a_deleted_cache_is_built_again_equal(corpus: Path, cache: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    before = files_of(cache)
    shutil.rmtree(cache)
    assert len(list(prepared.documents("test", "birds"))) >= 1
    assert len(prepared.stream("train").tokens) > 0
    assert files_of(cache) == before


def test_changed_text_is_not_passed_off_as_the_old(corpus: Path, cache: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    shutil.rmtree(cache)
    (corpus / "birds" / "00.txt").write_text("something else")
    with pytest.raises(DataError, match="has changed"):
        prepared.documents("test", "birds")


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_entry_is_built_again(corpus: Path, cache: Path, damage: str) -> None:
    prepare(DataConfig(source=str(corpus)), SMALL)
    before = files_of(cache)
    for name, content in before.items():
        path = cache / name
        if damage == "manifest":
            if path.name == "manifest.json":
                path.write_bytes(content[: len(content) // 2])
        elif path.name in ("train.tokens", "validation.jsonl"):
            if damage == "remove":
                path.unlink()
            else:
                changed = content[:-2] if damage == "cut" else content[:-2] + bytes([content[-2] ^ 1]) + b"\n"
                path.write_bytes(changed)
    assert files_of(cache) != before
    prepare(DataConfig(source=str(corpus)), SMALL)
    assert files_of(cache) == before


def test_what_a_killed_process_left_is_cleared_and_a_failed_build_leaves_nothing(cache: Path) -> None:
    def fail(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("half")
        raise DataError("no good")

    left = cache / "text" / f".{key_of('x')}.1234.part"
    left.mkdir(parents=True)
    with pytest.raises(DataError):
        entry("text", key_of("x"), fail)
    assert not [path for path in (cache / "text").iterdir() if not path.name.endswith(".lock")]


def test_two_processes_build_at_once(corpus: Path, cache: Path) -> None:
    code = (
        "import sys\nfrom expertise.lm.data import *\n"
        "p = prepare(DataConfig(source=sys.argv[1]), TokenizerConfig(vocab_size=300), print)\n"
        "print(len(p.stream('train').tokens))"
    )
    command = [sys.executable, "-c", code, str(corpus)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].split("\n") for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0][-2] == outputs[1][-2]
    assert sum("encoding the text" in output for output in outputs) == 1
    assert len(files_of(cache)) == 4 + 11


def test_a_cache_that_cannot_be_written(corpus: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTISE_CACHE", str(write("file", "") / "cache"))
    with pytest.raises(DiskError, match="cannot write the cache") as caught:
        prepare(DataConfig(source=str(corpus)), SMALL)
    assert "EXPERTISE_CACHE" in caught.value.hints[0]


def test_a_full_disk_is_one_line_and_leaves_no_entry(cache: Path) -> None:
    def inner(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def outer(folder: Path) -> dict[str, int]:
        return entry("text", "inner", inner).facts

    with pytest.raises(DiskError, match="No space left on device") as caught:
        entry("tokens", "outer", outer)
    assert caught.value.message == f"cannot write the cache {cache}: No space left on device"
    assert files_of(cache) == {}


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("EXPERTISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "expertise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "expertise"


def test_a_domain_alone_is_divided_as_among_all(corpus: Path) -> None:
    whole = prepare(DataConfig(source=str(corpus)), SMALL)
    assert len(whole.domains) > 1
    for domain in whole.domains:
        alone = prepare(DataConfig(source=str(corpus), domains=[domain]), whole.tokenizer)
        assert alone.domains == (domain,)
        assert alone.digest == whole.digest
        for side in SPLITS:
            assert list(alone.documents(side, domain)) == list(whole.documents(side, domain))
            assert alone.tokens_count[side] == {domain: whole.tokens_count[side][domain]}
            assert alone.bytes[side] == {domain: whole.bytes[side][domain]}
            assert alone.documents_count[side] == {domain: whole.documents_count[side][domain]}
            stream, everything = alone.stream(side), whole.stream(side)
            kept = everything.domain_of(np.arange(len(everything.tokens))) == whole.domains.index(domain)
            assert np.array_equal(stream.tokens, everything.tokens[kept])
            assert set(stream.domain_ids.tolist()) == {0}


def test_domains_come_in_the_texts_own_order(corpus: Path) -> None:
    whole = prepare(DataConfig(source=str(corpus)), SMALL)
    asked = list(reversed(whole.domains))
    again = prepare(DataConfig(source=str(corpus), domains=asked), SMALL)
    assert again.domains == whole.domains
    assert np.array_equal(again.stream("train").tokens, whole.stream("train").tokens)
    with pytest.raises(RecipeError, match=f"the text has no domain '{whole.domains[0]}x'") as caught:
        prepare(DataConfig(source=str(corpus), domains=[whole.domains[0] + "x"]), SMALL)
    assert caught.value.hints == (f"did you mean {whole.domains[0]!r}?",)


def test_a_tokenizer_may_be_given_as_it_is(corpus: Path, tmp_path: Path) -> None:
    made = prepare(DataConfig(source=str(corpus)), SMALL).tokenizer
    made.save(str(tmp_path / "tokenizer.json"))
    by_path = prepare(DataConfig(source=str(corpus)), TokenizerConfig(path=str(tmp_path / "tokenizer.json")))
    given = prepare(DataConfig(source=str(corpus)), made)
    assert given.tokenizer.to_str() == by_path.tokenizer.to_str() == made.to_str()
    assert np.array_equal(given.stream("test").tokens, by_path.stream("test").tokens)
    assert given.vocab_size == by_path.vocab_size
