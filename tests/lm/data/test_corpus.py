from __future__ import annotations

from pathlib import Path

import pytest

from expertise.errors import DataError
from expertise.lm.data import DataConfig, SourceTable, TokenizerConfig, prepare
from expertise.lm.data.corpus import Deduplicator
from expertise.lm.data.split import SPLITS

SMALL = TokenizerConfig(vocab_size=300)
LONG = "This paragraph is certainly longer than sixty bytes, and it comes more than once."


def everything(prepared, domain: str) -> list[str]:
    return [text for side in SPLITS for text in prepared.documents(side, domain)]


def test_deduplication_keeps_the_first_of_long_paragraphs() -> None:
    clean = Deduplicator()
    assert clean(f"one\n\n{LONG}\n\ntwo\n") == f"one\n\n{LONG}\n\ntwo\n"
    assert clean(f"one\n\n{LONG}\n \n\nthree") == "one\n\nthree"
    assert clean(f"{LONG}") == ""
    assert clean("short\n\nshort") == "short\n\nshort"


def test_deduplication_crosses_domains_and_can_be_switched_off(write, tmp_path: Path) -> None:
    write("a.txt", "\n\n".join(f"{LONG} {i}" for i in range(50)))
    write("b.txt", "\n\n".join(f"{LONG} {i}" for i in range(40, 100)))
    tables = [SourceTable(path=str(tmp_path / f"{name}.txt"), domain=name) for name in "ab"]
    prepared = prepare(DataConfig(source=tables), SMALL)
    assert "".join(sorted(everything(prepared, "b"))).count(LONG) == 50
    kept = prepare(DataConfig(source=tables, deduplicate=False), SMALL)
    assert "".join(everything(kept, "b")).count(LONG) == 60
    copies = [*tables, SourceTable(path=str(tmp_path / "a.txt"), domain="copy")]
    with pytest.raises(DataError, match="the domain 'copy' has no text left"):
        prepare(DataConfig(source=copies), SMALL)


def test_no_file_is_on_two_sides_and_shares_hold(corpus: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus)), SMALL)
    assert prepared.domains == ("birds", "stones")
    for domain in prepared.domains:
        sides = [set(prepared.documents(side, domain)) for side in SPLITS]
        assert all(sides)
        assert sum(map(len, sides)) == len(sides[0] | sides[1] | sides[2])
        files = {path.read_text() for path in (corpus / domain).iterdir()}
        assert sides[0] | sides[1] | sides[2] == files
        total = sum(prepared.bytes[side][domain] for side in SPLITS)
        assert total == sum(len(text) for text in files)
        assert prepared.bytes["validation"][domain] / total == pytest.approx(0.05, abs=0.02)
        assert prepared.bytes["test"][domain] / total == pytest.approx(0.05, abs=0.02)


def test_the_split_does_not_depend_on_the_order_of_files(corpus: Path, write, tmp_path: Path) -> None:
    first = prepare(DataConfig(source=str(corpus)), SMALL)
    for path in sorted(corpus.rglob("*.txt"), reverse=True):
        write(f"again/corpus/{path.relative_to(corpus)}", path.read_text())
    second = prepare(DataConfig(source=str(tmp_path / "again/corpus")), SMALL)
    assert first.digest == second.digest
    for side in SPLITS:
        assert list(first.documents(side, "birds")) == list(second.documents(side, "birds"))


def test_a_single_file_is_cut_into_contiguous_sections(write) -> None:
    text = "".join(f"Line {i} of the only file there is.\n" + "\n" * (i % 5 == 0) for i in range(2000))
    path = write("novel.txt", text)
    prepared = prepare(DataConfig(source=str(path)), SMALL)
    total = len(text)
    for side, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        assert prepared.bytes[side]["novel"] / total == pytest.approx(share, abs=0.01)
    assert sum(prepared.bytes[side]["novel"] for side in SPLITS) == total
    for piece in everything(prepared, "novel"):
        assert piece in text
        assert piece.endswith("\n\n") or text.endswith(piece)
    # Train comes first, then one run for validation, then one for test.
    at = {side: sorted(text.index(p) for p in prepared.documents(side, "novel")) for side in SPLITS}
    assert at["train"][-1] < at["validation"][0] < at["validation"][-1] < at["test"][0]


@pytest.mark.parametrize("text", ["ab", "é"])
def test_too_little_to_divide(write, text: str) -> None:
    with pytest.raises(DataError, match="only 2 bytes"):
        prepare(DataConfig(source=str(write("tiny.txt", text))), SMALL)


def test_the_cap_holds_per_domain_to_the_byte(corpus: Path) -> None:
    prepared = prepare(DataConfig(source=str(corpus), cap_bytes=20_000), SMALL)
    for domain in prepared.domains:
        total = sum(prepared.bytes[side][domain] for side in SPLITS)
        assert 19_000 < total <= 20_000
    assert sum(len(text) for text in everything(prepared, "birds")) <= 20_000


def test_whitespace_documents_are_dropped(write, tmp_path: Path) -> None:
    write("d/a.txt", " \n\n ")
    write("d/b.txt", "\r\n".join(f"line {i}" for i in range(100)))
    prepared = prepare(DataConfig(source=str(tmp_path / "d")), SMALL)
    joined = "".join(everything(prepared, "d"))
    assert "\r" not in joined
    assert joined.count("line") == 100


@pytest.mark.parametrize(
    ("name", "field"),
    [("shakespeare/input.txt", "text"), ("wikitext2/test.txt", "text"), ("gsm8k/train.jsonl", "question")],
)
def test_real_texts(name: str, field: str) -> None:
    path = Path(__file__).parents[4] / "shared/data" / name
    if not path.exists():
        pytest.skip(f"no {name} beside the repository")
    table = SourceTable(path=str(path), domain="real", field=field)
    prepared = prepare(DataConfig(source=[table], cap_bytes=400_000), SMALL)
    total = sum(prepared.bytes[side]["real"] for side in SPLITS)
    for side, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        assert prepared.bytes[side]["real"] / total == pytest.approx(share, abs=0.02)
    text = next(prepared.documents("validation", "real"))
    assert prepared.tokenizer.decode(prepared.tokenizer.encode(text).ids) == text
