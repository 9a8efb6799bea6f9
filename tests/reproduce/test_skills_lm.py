"""The reproduction of skills on language models in miniature: text, search, rows, page."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import get_args

import pytest

from expertise.errors import RunError
from expertise.runs.results import Results, Row
from reproduce.skills_lm import __main__ as command
from reproduce.skills_lm import llama, ours, search
from reproduce.skills_lm.measure import BITS, PARTS, SECONDS, TRAINED, VALIDATION, search_weights
from reproduce.skills_lm.page import write_page
from reproduce.skills_lm.plan import COMMON, SKILLS, TARGETS, Plan, PoolPlan, Use, file_of, target_name
from reproduce.skills_lm.text import mixed, write_few, write_pools

TINY = Plan(
    seeds=(0,),
    context=16,
    batch_size=2,
    dim=16,
    num_layers=2,
    vocab_size=270,
    num_parts=2,
    hidden=16,
    base_steps=2,
    rank=2,
    skill_steps=2,
    router_steps=2,
    search_rates=(2e-2,),
    few_bytes=(2_000,),
    few_steps=(1,),
    test_bytes=300,
    search_bytes=100,
)


def test_documents_alternate_between_two_domains() -> None:
    first, second = iter(["a1 ", "a2 ", "a3 ", "a4 ", "a5 "]), iter(["b1 ", "b2 ", "b3 ", "b4 "])
    assert list(mixed(first, second, 4)) == ["a1 b1 a2 b2 ", "b3 a3 b4 a4 "]


def test_pools_share_no_document_and_targets_hold_both_domains(tmp_path: Path) -> None:
    pools = PoolPlan(base_common=20_000, base_other=5_000, skill=8_000, learn=4, select=2, held=3)
    write_pools(tmp_path / "text", pools, lambda line: None)
    found = {
        path.stem: [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / "text").iterdir()
    }
    assert set(found) == {
        *(f"base.{domain}" for domain in (COMMON, *SKILLS)),
        *(f"skill.{domain}" for domain in SKILLS),
        *(file_of(pair, use) for pair in TARGETS for use in get_args(Use)),
    }
    paragraphs = {
        name: {p for text in texts for p in text.split("\n\n") if len(p.encode()) >= 60}
        for name, texts in found.items()
        if "+" not in name
    }
    for one, other in itertools.combinations(paragraphs, 2):
        assert not paragraphs[one] & paragraphs[other], (one, other)
    assert sum(len(text.encode()) for text in found[f"base.{COMMON}"]) >= 20_000
    lines = {
        use: {line for text in found[file_of(TARGETS[0], use)] for line in text.split("\n") if len(line) > 60}
        for use in get_args(Use)
    }
    assert not lines["learn"] & lines["held"]
    assert not lines["select"] & lines["held"]
    assert any("#" in line for line in lines["learn"])
    before = (tmp_path / "text" / "skill.data.jsonl").stat().st_mtime_ns
    write_pools(tmp_path / "text", pools, lambda line: None)
    assert (tmp_path / "text" / "skill.data.jsonl").stat().st_mtime_ns == before


def test_little_text_is_the_beginning_of_what_is_given(tmp_path: Path) -> None:
    pair = TARGETS[0]
    name = write_few(tmp_path, pair, 10, iter(["123456", "äääää", "never"]))
    lines = (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["123456", "ää"]
    assert write_few(tmp_path, pair, 10, iter([])) == name
    assert len((tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()) == 2


def test_the_search_starts_from_the_best_and_goes_down() -> None:
    asked = []

    def cost(weights: list[float]) -> float:
        asked.append(tuple(weights))
        return (weights[0] - 0.7) ** 2 + (weights[1] + 0.3) ** 2

    found = search_weights(cost, [[0.0, 0.0], [1.0, 0.0]], sweeps=3)
    assert found == pytest.approx([0.7, -0.3], abs=0.05)
    assert len(asked) == len(set(asked))
    assert search_weights(cost, [[0.0, 0.0], [1.0, 0.0]], sweeps=0) == [1.0, 0.0]


def _fill(text: Path) -> None:
    """Pools of made-up words, a different set for each domain."""
    text.mkdir(parents=True)
    drawn = random.Random(0)
    words = {d: [f"{d[:2]}{i}" for i in range(40)] for d in (COMMON, *SKILLS)}
    pools = [(f"base.{d}", [d]) for d in words] + [(f"skill.{d}", [d]) for d in SKILLS]
    targets = [(file_of(pair, use), list(pair)) for pair in TARGETS for use in get_args(Use)]
    for name, domains in [*pools, *targets]:
        with (text / f"{name}.jsonl").open("w") as file:
            for _ in range(60):
                line = " ".join(drawn.choice(words[drawn.choice(domains)]) for _ in range(30))
                file.write(json.dumps({"text": line}) + "\n")


@pytest.mark.slow
def test_every_row_is_measured_once_and_the_page_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: no tiny Llama")
    monkeypatch.setenv("EXPERTISE_CACHE", str(tmp_path / "cache"))
    _fill(tmp_path / "work" / "text")
    path = tmp_path / "results" / "skills_lm.json"
    command.run(TINY, path, tmp_path / "work", lambda line: None)
    results = Results(path)
    rows = {(row.table, row.setting, row.row) for row in results.rows if row.metric == BITS}
    assert {(ours.MAIN, target_name(pair), row) for pair in TARGETS for row in ours.ORDER} <= rows
    assert {(ours.PAIR, llama.SETTING, row) for row in ("base", "headers", "data", "α per token")} <= rows
    assert len(results.select(ours.MAIN, PARTS)) == len(TARGETS)
    assert (ours.FEW, "2 kB, 1 steps", ours.NEW) in rows
    assert len(results.select(search.SEARCH, VALIDATION, "rate 0.02")) == len(search.ORDER)
    joint, new = (
        next(row.value for row in results.select(ours.MAIN, TRAINED) if row.row == name)
        for name in (ours.JOINT, ours.NEW)
    )
    assert joint == len(SKILLS) * new

    before = path.read_bytes()
    # On another machine, with the same text and no trainings: nothing is left to do.
    _fill(tmp_path / "other" / "text")
    command.run(TINY, path, tmp_path / "other", lambda line: None)
    assert path.read_bytes() == before
    assert [each.name for each in (tmp_path / "other").iterdir()] == ["text"]

    # Where the trainings still are, lost rows come back as they were.
    content = json.loads(before)
    content["rows"] = [row for row in content["rows"] if row["row"] not in (ours.TOKEN, ours.UNIFORM)]
    path.write_text(json.dumps(content))
    command.run(TINY, path, tmp_path / "work", lambda line: None)
    again = {row.key: row.value for row in Results(path).rows if row.metric != SECONDS}
    assert again == {row.key: row.value for row in results.rows if row.metric != SECONDS}

    page, picture = write_page(results)
    text = page.read_text("utf-8")
    assert picture.read_text("utf-8").startswith("<?xml")
    assert "not measured" not in text
    assert "0 of 0" not in text


def _rows(seeds: int = 3) -> list[Row]:
    made = []
    for seed in range(seeds):
        for setting, rows in (
            *((target_name(pair), ours.ORDER) for pair in TARGETS),
            ("ours", ("base", "headers", "data", ours.SEQUENCE, ours.TOKEN)),
            (llama.SETTING, ("base", "headers", "data", ours.SEQUENCE, ours.TOKEN)),
        ):
            table = ours.MAIN if "+" in setting else ours.PAIR
            for place, row in enumerate(rows):
                value = 3.0 - 0.1 * place + 0.01 * seed
                if setting == llama.SETTING and row == ours.TOKEN and seed == 1:
                    value = 4.0
                made.append(
                    Row(table=table, setting=setting, row=row, metric=BITS, unit="", seed=seed, value=value)
                )
    return made


def test_the_page_says_what_did_not_come_out(tmp_path: Path) -> None:
    results = Results(tmp_path / "skills_lm.json")
    results.add(_rows())
    page, _ = write_page(results)
    text = page.read_text("utf-8")
    assert "- ours, α per token: below the base and both skills in 3 of 3 seeds: holds." in text
    wanted = "- tiny Llama, α per token: below the base and both skills in 2 of 3 seeds: **does not hold**."
    assert wanted in text
    assert "| base | 3.010 ± 0.010 | 3.010 ± 0.010 |" in text
    assert page.read_text("utf-8") == write_page(results)[0].read_text("utf-8")


def test_rows_of_another_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "skills_lm.json"
    Results(path, TINY.settings() | {"text": "other"}).add(_rows(1))
    _fill(tmp_path / "work" / "text")
    with pytest.raises(RunError, match="other settings: text"):
        command.run(TINY, path, tmp_path / "work", lambda line: None)


def test_the_published_page_is_made_of_the_published_rows() -> None:
    if not command.RESULTS.is_file():
        pytest.skip("no published rows yet")
    from reproduce.skills_lm.page import page_text

    results = Results(command.RESULTS)
    wanted = page_text(results, command.RESULTS.with_suffix(".svg").name)
    assert command.RESULTS.with_suffix(".md").read_text("utf-8") == wanted
