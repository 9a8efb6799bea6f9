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


def test_a_run_with_a_validation_source(expertise: Any, home: Path) -> None:
    (home / "own-valid.txt").write_text("red stone sings quietly and then walks\n" * 40)
    learnt = expertise(
        "train",
        "small.toml",
        "--set",
        "data.validation=own-valid.txt",
        "--set",
        "train.steps=2",
        "--out",
        "own",
    )
    assert learnt.returncode == 0, learnt.stderr
    own = json.loads(expertise("evaluate", "own", "--json").stdout)
    given = json.loads(expertise("evaluate", "own", "--data", "own-valid.txt", "--json").stdout)
    assert list(own["bytes"]) == ["own-valid"]
    for key in ("bits_per_byte", "parts_per_token", "bytes", "documents"):
        assert own[key] == given[key]
    done = expertise("evaluate", "own", "--split", "test")
    assert (done.returncode, "there is no test text" in done.stderr) == (2, True)
    assert "--data" in done.stderr
    assert expertise("inspect", "own").returncode == 0
    assert expertise("train", "small.toml", "--out", "own").returncode == 2, (
        "it was made with a validation source"
    )


def test_skills_are_measured_on_a_validation_source(run_folder: Path, expertise: Any, home: Path) -> None:
    (home / "skill-valid.txt").write_text("blue river walks and then sings quietly\n" * 30)
    few = ("--steps", "2", "--batch-size", "2", "--set", "data.validation=skill-valid.txt", "--threads", "1")
    learnt = expertise(
        "skill", "learn", "run", "--data", "text/code", "--name", "own", "--library", "own-skills",
        "--work", "own-work", "--json", *few
    )  # fmt: skip
    assert learnt.returncode == 0, learnt.stderr
    assert list(json.loads(learnt.stdout)["metrics"]["bits_per_byte"]["after"]) == ["skill-valid", "mean"]
    assert f"{(home / 'skill-valid.txt').stat().st_size:,} bytes are held out" in learnt.stderr
    mixed = expertise(
        "skill", "compose", "run", "--skills", "own", "--library", "own-skills", "--data", "text/code",
        "--out", "own-mixed", "--work", "own-mixing", "--json", *few
    )  # fmt: skip
    assert mixed.returncode == 0, mixed.stderr
    # The composed folder keeps its held-out text too, whole within its own checksums.
    (home / "skill-valid.txt").unlink()
    for command in (("evaluate", "own-mixed"), ("skill", "report", "own-mixed")):
        done = expertise(*command, "--threads", "1")
        assert done.returncode == 0, done.stderr
        assert "cannot be read any more" in done.stderr
    done = expertise("skill", "report", "own-mixed", "--data", "given-cjk.txt", "--max-bytes", "2")
    assert (done.returncode, "nothing to look at" in done.stderr) == (2, True)
    file = home / "own-mixed" / "held-out" / "validation.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-1])
    done = expertise("evaluate", "own-mixed")
    assert (done.returncode, "damaged composed model" in done.stderr) == (2, True)


def test_results_for_machines_hold_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from expertise.cli.options import print_json

    print_json({"a": [float("nan"), 1.5, {"b": float("inf")}], "c": (2, None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5, {"b": None}], "c": [2, None]}


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


def test_text_without_a_token_is_told_and_too_little_text_gets_no_impossible_advice(
    home: Path, expertise: Any
) -> None:
    from tokenizers import AddedToken, Tokenizer, models

    letters = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefgh ")}, []))
    letters.add_special_tokens([AddedToken("<|endoftext|>")])
    letters.save(str(home / "letters.json"))
    rows = [{"prompt": f"a{'b' * (i % 5)} ", "completion": "c" * (i + 1)} for i in range(40)]
    lost = [{"prompt": "a", "completion": "漢字"}, {"prompt": "a", "completion": "語b"}]
    for name, kept in (("kept", rows), ("lost", lost), ("none", lost[:1] * 40)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (home / "none.txt").write_text("\n\n".join(chr(0x4E00 + i) * 30 for i in range(300)))
    settings = {
        "data": "{source='kept.jsonl', kind='prompt'}",
        "tokenizer": "{path='letters.json'}",
        "train.steps": "1",
        "train.batch_size": "2",
        "model.context": "24",
    }
    asked = ["train", "small.toml", *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))]
    assert expertise(*asked, "--out", "letters").returncode == 0
    done = expertise("evaluate", "letters", "--data", "lost.jsonl", "--kind", "prompt")
    assert "lost: left out: 1 of 2 documents" in done.stderr
    assert "1 of 3 characters" in done.stderr
    none = expertise("evaluate", "letters", "--data", "none.jsonl", "--kind", "prompt")
    assert "40 of 40 documents" in none.stderr
    for data in ("{source='none.txt'}", "{source='none.jsonl', kind='prompt', deduplicate=false}"):
        done = expertise(*asked, "--check", "--set", f"data={data}")
        assert done.returncode == 2
        assert "take a tokenizer" in done.stderr
        assert "lower" not in done.stderr
    done = expertise("generate", "letters", "漢字")
    assert done.returncode == 2
    assert "no token of the prompt" in done.stderr
