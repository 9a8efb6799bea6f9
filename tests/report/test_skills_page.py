"""The page of skills as text: what it says, what it leaves out, that it is one sound file."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from page_reader import PageReader, require_sound
from skills_records import ODD, SKILLS, record

from expertise.report import skills
from expertise.report.records import SkillsRecord, from_json, to_json


def render(values: dict[str, Any]) -> str:
    return skills.render(from_json(SkillsRecord, values))


@pytest.mark.parametrize("case", ["demo", *ODD])
def test_every_record_gives_one_sound_file(case: str) -> None:
    require_sound(render(record() if case == "demo" else ODD[case]()))


def test_a_record_is_left_as_it_was_and_may_have_gone_through_json() -> None:
    made = from_json(SkillsRecord, ODD["hostile"]())
    before = copy.deepcopy(made)
    page = skills.render(made)
    assert made == before
    assert render(json.loads(json.dumps(to_json(made)))) == page


def test_the_page_says_what_composing_gave() -> None:
    text = PageReader(render(record())).text
    assert "The composed model needs 1.75 bits per byte where the base needs 2.00" in text
    assert "A context router weighs the skills: one choice per token, from its hidden state." in text
    assert "In no column does the composed model need the fewest bits." in text
    close = record()
    close["bits_per_byte"]["base"] = close["bits_per_byte"]["composed"] | {"headers": 1.91}
    assert "needs 1.750 bits per byte where the base needs 1.752" in PageReader(render(close)).text
    better = record()
    better["bits_per_byte"]["composed"] |= {"headers": 1.0, "prose": 1.1}
    assert "the fewest bits in 2 of 5 columns: headers and prose." in PageReader(render(better)).text


def test_constant_weights_are_named_and_nothing_is_said_of_tokens() -> None:
    text = PageReader(render(ODD["fixed"]())).text
    wanted = "constant weights: headers 0.70, prose −0.30, tests 0.00 and tables 1.00."
    assert wanted in text
    assert "token by token" not in text


def _table(page: str, section: str) -> list[list[tuple[str, str]]]:
    """Rows of (class, text) of the first table of a section."""
    start = page.index(f'<section id="{section}">')
    body = re.search(r"<tbody>(.*?)</tbody>", page[start:], re.S)
    assert body is not None
    return [
        re.findall(r'<td(?: class="(d\d)")?>(?:<b>)?([^<]*)', line)
        for line in re.findall(r"<tr.*?</tr>", body[1], re.S)
    ]


def test_losses_are_coloured_by_what_they_save() -> None:
    cells = _table(render(record()), "losses")
    assert len(cells) == 1 + len(SKILLS) + 2
    assert {step for step, _ in cells[0]} == {"d4"}
    # A skill helps in its own domain and hurts in the others.
    assert [step > "d4" for step, _ in cells[1][:5]] == [True, False, False, False, True]
    assert [step < "d4" for step, _ in cells[1][:4]] == [False, True, True, True]


def test_weights_by_domain_and_similarity_are_what_the_record_holds() -> None:
    made = record()
    page = render(made)
    cells = _table(page, "domains")
    assert float(cells[1][4][1].replace("−", "-")) == pytest.approx(
        made["alpha"]["headers+tables"]["prose"]["mean"]
    )
    alike = _table(page, "similarity")
    assert alike[0][3] == ("d0", "−0.15")
    assert alike[2][2] == ("", "1.00")
    assert "headers keeps 99.1 % of its energy" in PageReader(page).text


def test_a_passage_has_a_step_for_every_token_and_skill() -> None:
    made = record()
    found = re.search(r'id="passage-data">(.*?)</script>', render(made), re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data["names"] == list(SKILLS)
    for passage, steps, weights in zip(made["passages"], data["steps"], data["weights"], strict=True):
        assert [token["alpha"] for token in passage["tokens"]] == weights
        assert [len(each) for each in steps] == [len(passage["tokens"])] * len(SKILLS)
        for skill, each in enumerate(steps):
            for step, token in zip(each, passage["tokens"], strict=True):
                assert (int(step) > 4) <= (token["alpha"][skill] > 0)
                assert (int(step) < 4) <= (token["alpha"][skill] < 0)


def test_energy_names_the_rank_that_is_enough() -> None:
    text = PageReader(render(record())).text
    assert "rank 4 of 8 holds 90 %" in text


@pytest.mark.parametrize(
    "leave_out", ["similarity", "alpha", "passages", "bits_per_byte", "skills", "domains"]
)
def test_a_part_that_is_missing_is_left_out(leave_out: str) -> None:
    made: dict[str, Any] = record()
    del made[leave_out]
    require_sound(render(made))
