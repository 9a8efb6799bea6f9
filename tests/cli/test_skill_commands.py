"""`expertise skill learn` and `compose`, and the commands that open what they made."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

FAST = ("--steps", "6", "--batch-size", "4", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def skills(home: Path, run_folder: Path, expertise: Command) -> Path:
    """Two skills of the small run, learnt by the command."""
    for domain in ("prose", "code"):
        done = expertise(
            "skill", "learn", "run", "--data", "text", "--domain", domain, "--name", domain, *FAST,
            "--learning-rate", "0.01", "--purpose", f"writes {domain}", "--rank", "4",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.search(rf"{domain} +\d\.\d{{4}} → \d\.\d{{4}} bits per byte", done.stdout)
        assert f"skill {domain} is in skills" in done.stdout
    return home / "skills"


@pytest.fixture(scope="module")
def mixed(home: Path, skills: Path, expertise: Command) -> Path:
    """A composed model, written by the command."""
    done = expertise(
        "skill", "compose", "run", "--skills", "prose,code", "--data", "text", "--out", "mixed", *FAST
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert rows[:6] == ["bits per byte", "base", "skill prose", "skill code", "uniform", "composed"]
    assert "expertise generate mixed" in done.stdout
    return home / "mixed"


def test_learning_prints_json_for_machines(home: Path, skills: Path, expertise: Command) -> None:
    done = expertise(
        "skill", "learn", "run", "--data", "text/prose", "--name", "third", "--beside", "prose,code",
        "--weights", "0.5,-0.1", "--target", "qkv", "--target", "experts", *FAST, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["name"] == "third"
    assert card["metrics"]["beside"] == {"prose": 0.5, "code": -0.1}
    assert set(card["parents"]) == {"prose", "code"}
    assert any(address.endswith("qkv") for address in card["targets"])
    assert not any(address.endswith("attention.output") for address in card["targets"])
    again = expertise("skill", "learn", "run", "--data", "text/prose", "--name", "third", *FAST)
    assert again.returncode == 2
    assert "has a skill 'third' already" in again.stderr


def test_composing_prints_json_for_machines(home: Path, skills: Path, expertise: Command) -> None:
    for router, reads in (("top_k", "token"), ("top_p", "layer")):
        out = f"mixed-{router}"
        done = expertise(
            "skill", "compose", "run", "--skills", "prose,code", "--data", "text", "--router", router,
            "--reads", reads, "--out", out, *FAST, "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["composed"] == out
        assert set(result["bits_per_byte"]) == {"base", "skills", "uniform", "composed"}
        assert "better_alone" in result
        assert json.loads((home / out / "composed.json").read_text())["router"]["name"] == router


def test_constant_weights(home: Path, skills: Path, expertise: Command) -> None:
    done = expertise(
        "skill", "compose", "run", "--skills", "prose,code", "--weights", "0.7,-0.3", "--out", "fixed"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((home / "fixed" / "composed.json").read_text())["weights"] == [0.7, -0.3]
    table = expertise(
        "skill", "compose", "run", "--skills", "prose", "--weights", "1", "--data", "text", "--out", "one"
    )
    assert "skill prose" in table.stdout
    assert "alone is better" not in table.stdout, "it is the same"
    for weights, better in (("-3", {"prose", "base"}), ("0.01,-3", {"prose", "code", "base"})):
        given = (
            "--skills",
            "prose,code" if "," in weights else "prose",
            f"--weights={weights}",
            "--data",
            "text",
        )
        told = expertise("skill", "compose", "run", *given, "--out", f"told{len(weights)}")
        (line,) = [line for line in told.stdout.splitlines() if "alone is better" in line]
        found = json.loads(
            expertise("skill", "compose", "run", *given, "--out", f"json{len(weights)}", "--json").stdout
        )
        alone, bits = found["better_alone"], found["bits_per_byte"]
        rows = {"base": bits["base"], **bits["skills"]}
        assert alone["name"] in better
        assert alone["bits_per_byte"] == pytest.approx(min(row["mean"] for row in rows.values()), abs=1e-4)
        assert alone["composed"] == pytest.approx(bits["composed"]["mean"], abs=1e-4)
        assert f"{alone['name']} alone" in line
        assert f"{alone['bits_per_byte']:.4f}" in line
    shown = expertise("evaluate", "fixed", "--data", "text", "--max-bytes", "500", "--threads", "1")
    assert shown.returncode == 0, shown.stderr
    assert "prose 0.700  code -0.300" in shown.stdout


def test_evaluate_opens_composed_models_and_bases(mixed: Path, expertise: Command) -> None:
    done = expertise("evaluate", "mixed", "--json", "--max-bytes", "500", "--threads", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["bits_per_byte"]) == {"code", "prose", "mean"}
    assert set(result["skills"]["code"]) == {"prose", "code"}
    given = ("evaluate", "run", "--data", "text", "--json", "--max-bytes", "500", "--threads", "1")
    whole, part = (
        json.loads(expertise(*given, *more).stdout)["bits_per_byte"] for more in ((), ("--domain", "code"))
    )
    assert part == {"code": whole["code"], "mean": whole["code"]}
    assert set(whole) == {"code", "prose", "mean"}


def test_generate_shows_the_weight_of_each_skill(mixed: Path, expertise: Command) -> None:
    asked = ("generate", "mixed", "red green", "-n", "5", "--greedy", "--threads", "1")
    shown = expertise(*asked, "--show", "skills")
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"\[prose -?\d\.\d\d code -?\d\.\d\d\]", shown.stdout)
    told = json.loads(expertise(*asked, "--json").stdout)
    assert set(told["tokens"][0]["skills"]) == {"prose", "code"}
    plain = expertise(*asked).stdout
    assert re.sub(r"\[prose \S+ code \S+\]", "", shown.stdout) == plain
    refused = expertise("generate", "run", "red", "--show", "skills")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: run is no composed model")


def test_a_moved_base_is_named_by_an_option(mixed: Path, home: Path, expertise: Command) -> None:
    (home / "run").rename(home / "moved")
    try:
        lost = expertise("generate", "mixed", "red", "-n", "2")
        assert lost.returncode == 2
        assert lost.stderr.splitlines()[0].startswith("error: the base of mixed is not at ")
        assert "--base" in lost.stderr
        for command in (("generate", "mixed", "red", "-n", "2"), ("evaluate", "mixed", "--max-bytes", "300")):
            found = expertise(*command, "--base", "moved", "--threads", "1")
            assert found.returncode == 0, found.stderr
    finally:
        (home / "moved").rename(home / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compose", "run", "--skills", "prose", "--out", "x"), "give --weights, or --data"),
        (("compose", "run", "--skills", "prose,,code", "--weights", "1,1", "--out", "x"), "an empty name"),
        (("compose", "run", "--skills", "prose", "--weights", "one", "--out", "x"), "is not numbers"),
        (("compose", "run", "--skills", "poetry", "--weights", "1", "--out", "x"), "no skill 'poetry'"),
        (
            ("compose", "run", "--skills", "prose", "--data", "text", "--router", "topk", "--out", "x"),
            "router.name: unknown 'topk'",
        ),
        (
            ("compose", "run", "--skills", "prose", "--data", "text", "--reads", "words", "--out", "x"),
            "reads: input should be",
        ),
        (
            ("compose", "run", "--skills", "prose", "--data", "text", "--set", "train.step=3", "--out", "x"),
            "unknown key train.step",
        ),
        (("learn", "nowhere", "--data", "text", "--name", "x"), "no model at nowhere"),
        (("learn", "run", "--data", "text", "--name", "a/b"), "cannot be a skill's name"),
        (("learn", "run", "--data", "text", "--name", "x", "--target", "qvk"), "is called 'qvk'"),
        (("learn", "run", "--data", "text", "--name", "x", "--beside", "y"), "no skill 'y'"),
    ],
)
def test_mistakes_are_one_line(
    skills: Path, home: Path, expertise: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = expertise("skill", *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-4:][0].startswith("error: ") or "error: " in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (home / "x").exists()


def test_the_group_lists_its_commands(expertise: Command) -> None:
    done = expertise("skill", "--help")
    assert done.returncode == 0
    assert {"learn", "compose"} <= set(done.stdout.split())
    wrong = expertise("skill", "lern")
    assert wrong.returncode == 2
