"""`expertise skill report`, from two skills of a run to a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def composed(run_folder: Path, home: Path, expertise) -> Path:
    few = ("--steps", "2", "--batch-size", "4", "--threads", "1")
    for domain in ("prose", "code"):
        learn = ("skill", "learn", "run", "--data", f"text/{domain}", "--name", domain, *few)
        done = expertise(*learn, "--work", f"work-{domain}", "--library", "shelf")
        assert done.returncode == 0, done.stderr
    compose = ("skill", "compose", "run", "--skills", "prose,code", "--library", "shelf", *few)
    done = expertise(
        *compose, "--data", "text", "--reads", "token", "--work", "work-report", "--out", "reported"
    )
    assert done.returncode == 0, done.stderr
    return home / "reported"


def test_the_page_is_of_the_text_that_the_router_was_learnt_from(composed: Path, expertise) -> None:
    done = expertise("skill", "report", "reported", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    record = json.loads((composed / "skills.json").read_text("utf-8"))
    assert made == {"report": "reported/skills.html", "record": "reported/skills.json"}
    assert record["domains"] == ["code", "prose"]
    assert [skill["name"] for skill in record["skills"]] == ["prose", "code"]
    assert record["composition"] == {"router": "context", "reads": "token", "weights": None}
    again = expertise("evaluate", "reported", "--max-bytes", "65536", "--threads", "1", "--json")
    wanted = json.loads(again.stdout)
    for domain in record["domains"]:
        bits = record["bits_per_byte"]["composed"][domain]
        assert bits == pytest.approx(wanted["bits_per_byte"][domain], abs=1e-4)
        means = {name: found["mean"] for name, found in record["alpha"][domain].items()}
        assert means == pytest.approx(wanted["skills"][domain], abs=1e-3)


def test_other_text_can_be_looked_at(composed: Path, expertise) -> None:
    done = expertise(
        "skill", "report", "reported", "--data", "text/code", "--split", "test", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "reported/skills.html"
    assert json.loads((composed / "skills.json").read_text("utf-8"))["domains"] == ["code"]


def test_mistakes_are_named(composed: Path, expertise) -> None:
    done = expertise("skill", "report", "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no composed model at run")
    done = expertise("skill", "report", "reported", "--split", "all")
    assert done.returncode == 2
    assert "no split 'all'" in done.stderr
