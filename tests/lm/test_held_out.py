"""A run keeps its held-out text: it is evaluated and drawn when its sources have changed or are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import RunError
from expertise.lm.data import HELD_OUT, DataConfig, SourceTable, TokenizerConfig, held_out, prepare
from expertise.lm.evaluate.run import evaluate_run
from expertise.lm.train import train
from expertise.report.language_model_record import write_report

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("same_threads")


def quiet(_line: str) -> None:
    """Print nothing."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_text: Path, small_recipe: Make) -> Path:
    """A run whose text lies beside it."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(small_text, folder / "text")
    threads = torch.get_num_threads()
    train(small_recipe("train.steps=2", f"data.source={folder / 'text'}"), folder / "run", quiet)
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with a copy of its text, and a cache that is empty."""
    shutil.copytree(trained.parent, tmp_path / "home")
    recipe = tmp_path / "home" / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(trained.parent), str(tmp_path / "home")))
    monkeypatch.setenv("EXPERTISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "home" / "run"


def add_a_line(run: Path) -> None:
    with (run.parent / "text" / "prose" / "00.txt").open("a") as file:
        file.write("\nOne line more.\n")


def scores(run: Path, split: str = "validation", say: Callable[[str], None] = quiet) -> dict[str, Any]:
    return evaluate_run(run, split, 0, "cpu", 1, say)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_run_is_evaluated_on_its_own_text_whatever_became_of_the_sources(run: Path, split: str) -> None:
    before = scores(run, split)
    assert before["source_changed"] is False
    add_a_line(run)
    said: list[str] = []
    changed = scores(run, split, said.append)
    assert changed == before | {"source_changed": True}
    assert "has changed since" in said[0]
    assert "--set init=" in said[1]
    shutil.rmtree(run.parent / "text")
    said.clear()
    gone = scores(run, split, said.append)
    assert gone == before | {"source_changed": None}
    assert "cannot be read any more" in said[0]


def test_the_page_is_drawn_and_says_what_has_changed(run: Path) -> None:
    write_report(run, quiet, device="cpu")
    before = json.loads((run / "report.json").read_text())
    add_a_line(run)
    write_report(run, quiet, device="cpu")
    after = json.loads((run / "report.json").read_text())
    assert after["layers"] == before["layers"]
    assert any("has changed since" in note for note in after["notes"])
    assert "has changed since" in (run / "report.html").read_text()
    shutil.rmtree(run.parent / "text")
    write_report(run, quiet, device="cpu")
    assert "cannot be read any more" in (run / "report.html").read_text()


def test_what_is_kept_is_what_was_held_out(run: Path) -> None:
    prepared = prepare(DataConfig(source=str(run.parent / "text")), TokenizerConfig(vocab_size=300))
    kept = held_out.kept(run / HELD_OUT, run / "tokenizer.json")
    assert kept is not None
    assert kept.digest == prepared.digest
    assert (kept.end_of_text, kept.vocab_size) == (prepared.end_of_text, prepared.vocab_size)
    for split in ("validation", "test"):
        assert kept.domains_of(split) == prepared.domains_of(split)
        for domain in prepared.domains:
            assert list(kept.records(split, domain)) == list(prepared.records(split, domain))
    sizes = sum(path.stat().st_size for path in (run / HELD_OUT).glob("*.gz"))
    assert sizes < 0.7 * sum(prepared.bytes[s][d] for s in ("validation", "test") for d in prepared.domains)


@pytest.mark.parametrize("name", ["validation.jsonl.gz", "test.jsonl.gz", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "missing"])
def test_damage_is_refused_and_mended(run: Path, small_recipe: Make, name: str, damage: str) -> None:
    file = run / HELD_OUT / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": bytes(raw), "short": bytes(raw[:-3]), "empty": b""}[damage])
    for look in (lambda: scores(run), lambda: write_report(run, quiet, device="cpu")):
        with pytest.raises(RunError, match=f"damaged held-out text .*{name}") as caught:
            look()
        assert "delete" in caught.value.hints[0]
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    train(small_recipe("train.steps=2", f"data.source={run.parent / 'text'}"), run, quiet)
    assert scores(run)["source_changed"] is False, "training again writes it anew from unchanged sources"
    assert {p.name: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()} == before


def test_a_run_of_before_has_none_and_goes_on(run: Path, trained: Path, small_recipe: Make) -> None:
    expected = scores(trained)
    shutil.rmtree(run / HELD_OUT)
    found = scores(run)
    assert found["bits_per_byte"] == expected["bits_per_byte"]
    write_report(run, quiet, device="cpu")
    recipe = small_recipe("train.steps=4", f"data.source={run.parent / 'text'}")
    train(recipe, run, quiet)
    train(recipe, run.parent / "whole", quiet)
    for name in ("checkpoints/step-4/model.safetensors", "held-out/manifest.json", "held-out/test.jsonl.gz"):
        assert (run / name).read_bytes() == (run.parent / "whole" / name).read_bytes(), name
    # Without what it would have kept, changed text is refused, with the way to go on.
    shutil.rmtree(run / HELD_OUT)
    add_a_line(run)
    for look in (lambda: scores(run), lambda: write_report(run, quiet, device="cpu")):
        with pytest.raises(RunError, match="the text has changed") as caught:
            look()
        assert f"init={run}" in caught.value.hints[0]


def test_the_way_on_that_is_named_is_one(run: Path, small_recipe: Make) -> None:
    from expertise.cli.main import run as command

    add_a_line(run)
    with pytest.raises(RunError, match="the text has changed"):
        train(small_recipe("train.steps=3", f"data.source={run.parent / 'text'}"), run, quiet)
    new = str(run.parent / "new")
    assert command(["train", str(run / "recipe.toml"), "--set", f"init={run}", "--out", new]) == 0
    assert json.loads((run.parent / "new" / "data.json").read_text())["init"]["step"] == 2


@pytest.mark.parametrize("left", [("recipe.toml",), ("recipe.toml", HELD_OUT)])
def test_a_run_that_was_killed_while_it_was_made_is_made_anew(
    run: Path, tmp_path: Path, small_recipe: Make, left: tuple[str, ...]
) -> None:
    started = tmp_path / "started"
    started.mkdir()
    for name in left:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, started / name)
    (started / f".{HELD_OUT}.0123abcd.part").mkdir()
    (started / f".{HELD_OUT}.0123abcd.part" / "validation.jsonl.gz").write_bytes(b"half")
    add_a_line(run)  # it had no step yet, so it may take the new text
    train(small_recipe("train.steps=2", f"data.source={run.parent / 'text'}"), started, quiet)
    assert scores(started)["source_changed"] is False
    assert not list(started.glob(".*.part"))


def test_records_keep_what_is_learnt_of_them(tmp_path: Path, small_recipe: Make) -> None:
    chats = tmp_path / "chats.jsonl"
    said = [
        [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": f"it is {i}"}]
        for i in range(60)
    ]
    chats.write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    recipe = small_recipe(f"data.source={chats}", "data.kind=messages", "train.steps=1", "train.batch_size=1")
    train(recipe, tmp_path / "run", quiet)
    before = scores(tmp_path / "run")
    chats.unlink()
    assert scores(tmp_path / "run") == before | {"source_changed": None}


def test_looks_at_less_than_a_character_have_no_value(tmp_path: Path, small_recipe: Make) -> None:
    """As a run's own look: the metrics hold null, the words a dash, and the page is drawn."""
    for domain, text in (("cjk", "漢字語"), ("latin", "stone ")):
        (tmp_path / "text" / domain).mkdir(parents=True)
        (tmp_path / "text" / domain / "a.txt").write_text(text * 1200)
    recipe = small_recipe(
        f"data.source={tmp_path / 'text'}", "data.deduplicate=false", "evaluation.bytes_per_domain=2"
    )
    train(recipe, tmp_path / "run", quiet)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["bits_per_byte"]["cjk"] is None
    assert last["bits_per_byte"]["mean"] == last["bits_per_byte"]["latin"] > 0
    write_report(tmp_path / "run", quiet, device="cpu")
    record = (tmp_path / "run" / "report.json").read_text()
    assert "NaN" not in record
    compressors = json.loads(record)["compressors"]
    assert all(set(of.values()) == {None} for of in compressors.values())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nan" not in page.lower().split()
    assert not {"zlib", "lzma"} & set(page.replace("<", " ").replace(">", " ").split())


@pytest.mark.parametrize(("size", "shown"), [(4095, False), (4096, True)])
def test_compressors_are_shown_on_enough_text_only(tmp_path: Path, size: int, shown: bool) -> None:
    from expertise.lm.evaluate import domain_texts
    from expertise.report.language_model_record import _compressors

    source, held, more = (tmp_path / f"{name}.txt" for name in ("source", "held", "more"))
    source.write_text(" ".join(f"stone {i}" for i in range(900)))
    held.write_text("".join(f"{i:07d}\n" for i in range(600))[:size])
    more.write_text("".join(f"{i:07d}\n" for i in range(600, 1400)))
    tables = [{"path": str(path), "domain": path.stem} for path in (held, more)]
    prepared = prepare(DataConfig(source=str(source), validation=str(held)), TokenizerConfig(vocab_size=300))
    alone = _compressors(prepared.tokenizer, domain_texts(prepared, "validation", 0, 32))
    assert {name: of["held"] is not None for name, of in alone.items()} == {"zlib": shown, "lzma": shown}
    both = DataConfig(source=str(source), validation=[SourceTable(**table) for table in tables])
    prepared = prepare(both, TokenizerConfig(vocab_size=300))
    found = _compressors(prepared.tokenizer, domain_texts(prepared, "validation", 0, 32))
    assert found["zlib"]["more"] is not None
    # Half of the text has none: a mean over the rest would stand beside the model's over all.
    assert (found["zlib"]["mean"] is not None) is shown
