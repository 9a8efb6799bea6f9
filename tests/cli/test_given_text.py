"""Text that a command is given is scored whole, it is said what was scored, and nothing is divided by 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expertise.lm.evaluate.run import evaluate_model

ROWS = [{"prompt": f"q {i} red?", "completion": f" it is {i} stones."} for i in range(50)]


@pytest.fixture(scope="module")
def given(home: Path) -> dict[str, Path]:
    """Text and records, some of them twice; one file is a single line."""
    files = {name: home / f"given-{name}" for name in ("records.jsonl", "lines.jsonl", "one.txt", "cjk.txt")}
    rows = [*ROWS, *ROWS[:5]]  # what a user measures on is not for us to shorten
    files["records.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paragraph = "the same long paragraph of well over sixty bytes stands in each of the rows here"
    files["lines.jsonl"].write_text(
        "".join(json.dumps({"text": f"{paragraph}\n\n{i}"}) + "\n" for i in range(9))
    )
    files["one.txt"].write_text("red stone")
    files["cjk.txt"].write_text("漢字語" * 40)
    return files


def result_of(expertise: Any, *arguments: str) -> dict[str, Any]:
    done = expertise("evaluate", "run", *arguments, "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(
        done.stdout, parse_constant=lambda name: pytest.fail(f"JSON has {name}")
    )
    return found


def test_all_of_given_text_is_scored_and_said(
    run_folder: Path, expertise: Any, given: dict[str, Path]
) -> None:
    answers = sum(len(row["completion"]) for row in [*ROWS, *ROWS[:5]])
    records = result_of(expertise, "--data", str(given["records.jsonl"]), "--kind", "prompt")
    assert records["split"] == "all"
    assert records["bytes"] == {"given-records": answers}
    assert records["documents"] == {"given-records": 55}
    lines = result_of(expertise, "--data", str(given["lines.jsonl"]))
    whole = sum(len(json.loads(line)["text"]) for line in given["lines.jsonl"].read_text().splitlines())
    assert (lines["bytes"], lines["documents"]) == ({"given-lines": whole}, {"given-lines": 9})
    assert result_of(expertise, "--data", str(given["one.txt"]))["bytes"] == {"given-one": 9}
    human = expertise("evaluate", "run", "--data", str(given["records.jsonl"]), "--kind", "prompt")
    assert human.stdout.startswith(f"on all of {given['records.jsonl']}: {answers:,} bytes, 55 documents\n")
    own = expertise("evaluate", "run").stdout
    assert own.startswith("on the validation text of run: ")


def test_a_side_of_given_text_is_scored_where_it_is_asked_for(
    run_folder: Path, expertise: Any, home: Path
) -> None:
    parts = {
        split: result_of(expertise, "--data", "text/code", "--split", split)
        for split in ("validation", "test", "all")
    }
    assert {split: found["split"] for split, found in parts.items()} == {s: s for s in parts}
    assert all(
        parts[s]["bytes"]["code"] < 0.1 * parts["all"]["bytes"]["code"] for s in ("validation", "test")
    )
    for arguments in (("--split", "all"), ("--split", "train"), ("--data", "text", "--split", "train")):
        done = expertise("evaluate", "run", *arguments)
        assert done.returncode == 2
        assert "no split" in done.stderr


def test_a_model_on_what_it_was_trained_on_is_warned_about(expertise: Any, home: Path) -> None:
    learnt = expertise(
        "train", "small.toml", "--set", "data.source=text", "--set", "train.steps=1", "--out", "learnt"
    )
    assert learnt.returncode == 0, learnt.stderr
    done = expertise("evaluate", "learnt", "--data", "text")
    assert "trained on this text" in done.stderr
    assert "--split validation" in done.stderr
    assert "trained on this text" not in expertise("evaluate", "learnt", "--data", "text/code").stderr


def test_text_of_less_than_a_character_has_no_bits(
    run_folder: Path, expertise: Any, given: dict[str, Path], home: Path
) -> None:
    cjk = ("--data", str(given["cjk.txt"]), "--max-bytes", "2")
    nothing = result_of(expertise, *cjk)
    assert nothing["bits_per_byte"] == {"given-cjk": None, "mean": None}
    assert nothing["parts_per_token"]["mean"] is None
    shown = expertise("evaluate", "run", *cjk).stdout
    assert "0.0000" not in shown
    assert "–" in shown
    # One domain without a byte stays out of the mean.
    both = home / "both"
    for name in ("cjk", "one"):
        (both / name).mkdir(parents=True)
        (both / name / "a.txt").write_text(given[f"{name}.txt"].read_text())
    mixed = result_of(expertise, "--data", str(both), "--max-bytes", "2")
    assert mixed["bits_per_byte"]["cjk"] is None
    assert mixed["bits_per_byte"]["one"] > 0
    assert mixed["bits_per_byte"]["mean"] == mixed["bits_per_byte"]["one"]
    assert mixed["parts_per_token"]["domains"]["cjk"] is None
    assert mixed["parts_per_token"]["domains"]["one"] > 0
    assert "cjk" in expertise("evaluate", "run", "--data", str(both), "--max-bytes", "2").stdout


def test_text_that_cannot_be_scored_is_refused(run_folder: Path, expertise: Any, home: Path) -> None:
    (home / "blank.txt").write_text(" \n\n")
    (home / "empty.txt").write_text("")
    for name, why in (("blank.txt", "no text"), ("empty.txt", "is empty"), ("none.txt", "does not exist")):
        done = expertise("evaluate", "run", "--data", name)
        assert done.returncode == 2, done.stderr
        assert why in done.stderr


def test_the_tokenizer_of_a_model_is_left_as_it_is(run_folder: Path, given: dict[str, Path]) -> None:
    from expertise.lm import load
    from expertise.lm.data import DataConfig, all_of

    tokenizer = load(run_folder).tokenizer
    assert tokenizer is not None
    tokenizer.encode_special_tokens = False
    before = tokenizer.to_str()
    all_of(DataConfig(source=str(given["one.txt"])), tokenizer, lambda _: None)
    assert (tokenizer.to_str(), tokenizer.encode_special_tokens) == (before, False)
    with pytest.raises(Exception, match="no split 'al'"):
        evaluate_model(run_folder, "al", 0, "cpu", 1, lambda _: None)
