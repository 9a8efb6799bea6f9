"""The page of policies as text: what it says of safety, what it leaves out, that it is one sound file."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from page_reader import PageReader, require_sound
from policy_records import NAMES, ODD, STEPS, composed, evaluation, evaluations, record, rows_of

from expertise.errors import DataError
from expertise.policy.seeds import Evaluations
from expertise.report import policy
from expertise.report.page import write_page
from expertise.report.policy_record import policy_record
from expertise.report.records import PolicyRecord, from_json
from expertise.report.svg_charts import dot_map, interval_bar, timeline
from expertise.skills.skill import Factors, Skill


def render(values: dict[str, Any]) -> str:
    return policy.render(from_json(PolicyRecord, values))


@pytest.mark.parametrize("case", ["demo", *ODD])
def test_every_record_gives_one_sound_file(case: str) -> None:
    made = record() if case == "demo" else ODD[case]()
    before = copy.deepcopy(made)
    page = render(made)
    require_sound(re.sub(r'<img src="data:image/jpeg;base64,[^"]*"', "<img", page))
    assert ("<img" in page) is (case not in ("nothing", "empty", "hostile"))
    assert made == before
    assert render(json.loads(json.dumps(made))) == page


def test_the_page_says_what_was_earned_and_when_it_leans_on_safety() -> None:
    text = PageReader(render(record())).text
    reward = (420.0 - 26.339754104614258) / (1327.445556640625 - 26.339754104614258)
    found = re.search(r"PSEC reaches normalised reward (\S+) at (\S+) of the cost limit", text)
    assert found is not None
    assert float(found[1]) == pytest.approx(reward, abs=0.02)
    assert float(found[2]) == pytest.approx(0.4, abs=0.2)
    assert "the best other safe policy, safety skill" in text
    assert "the paper’s figure" in text
    assert (
        f"Where the safety critic sees a cost ahead ({STEPS // 4} of {STEPS} steps) the mean weight of "
        "safety is 1.25, elsewhere 0.25: it leans on safety there." in text
    )


def _sentence(**changes: Any) -> str:
    trace = policy_record(rows_of(PSEC=composed(**changes)), safety="safety").trace
    assert trace is not None
    return policy.leaning(trace)


def test_without_a_critic_costs_tell_where_it_was_dangerous() -> None:
    # Twelve steps lead to the costs or are at them; all of them lie in the quarter of much safety.
    wanted = "Up to 10 steps before a cost (12 of 80 steps) the mean weight of safety is 1.25, elsewhere 0.37"
    assert wanted in _sentence(risk=None)
    assert _sentence(risk=None, costs=np.zeros(STEPS)) == "The mean weight of safety is 0.50."


def test_a_critic_that_never_fears_is_asked_where_it_fears_most() -> None:
    risk = np.linspace(-3, -1, STEPS)
    assert "fears most (20 of 80 steps) the mean weight of safety is 0.25, elsewhere 0.58" in _sentence(
        risk=risk
    )
    assert "it leans on safety less there" in _sentence(risk=risk)
    risk, weights = np.arange(STEPS) - STEPS / 2, np.where(np.arange(STEPS) > STEPS / 2, -0.1, -0.3)
    assert "is −0.10, elsewhere −0.30: it leans on safety nowhere, there least against it." in _sentence(
        risk=risk, alpha=np.stack([weights, weights], 1)
    )
    even = np.full((STEPS, 2), 0.5)
    assert "it hardly tells the two apart" in _sentence(alpha=even)


def test_nothing_is_said_of_safety_where_no_skill_is_for_it() -> None:
    assert _sentence(names=("walk", "run")) == ""
    page = policy.render(policy_record(rows_of(PSEC=composed(names=("walk", "run"))), safety="safety"))
    assert page.count('class="dots"') == 3


def test_metrics_have_their_intervals_and_no_paper_beside_them() -> None:
    metrics = policy_record(evaluations()).groups[0].metrics
    assert [metric.name for metric in metrics] == ["normalized_reward", "normalized_cost"]
    # A row's name gives it no figure of any paper: whoever makes a record says what stands beside it.
    assert {row.paper for metric in metrics for row in metric.rows} == {None}
    by_name = {row.name: row for row in metrics[1].rows}
    summary = evaluations()["PSEC"].summary()
    assert by_name["PSEC"].mean == summary["normalized_cost"]
    assert by_name["PSEC"].error == summary["normalized_cost_error"] > 0
    walker = {"environment": "dmc/walker-walk", "has_cost": False, "has_success": True}
    found = policy_record(rows_of(PSEC=evaluation(600, 0, **walker), NSEC=evaluation(300, 0, **walker)))
    assert [metric.name for metric in found.groups[0].metrics] == ["success", "return"]
    assert found.trace is not None
    assert (found.trace.names, found.trace.alpha) == ([], None)
    # Nothing is weighed up: where it was is shown alone, and where there are no places nothing.
    assert 'class="timeline"' not in policy.render(found)
    nothing = evaluation(600, 0, positions=None)
    assert 'id="episode"' not in policy.render(policy_record(rows_of(BC=nothing)))
    filmed = {"frames": [np.zeros((24, 32, 3), np.uint8)] * 2, "frame_steps": [0, 40]}
    page = policy.render(policy_record(rows_of(BC=evaluation(600, 0, **filmed))))
    assert page.count("<img") == 2
    assert 'class="timeline"' not in page


def test_roles_come_with_the_record_and_not_from_names() -> None:
    rows = rows_of(BC=evaluation(900, 57), mine=composed(names=("fast", "slow")), PSEC=composed())
    page = PageReader(policy.render(policy_record(rows, ours="mine", safety="slow"))).text
    assert "mine reaches normalised reward" in page
    assert "the mean weight of slow is 1.25" in page
    plain = policy.render(policy_record(rows))
    assert "3 policies, side by side." in plain
    assert "the mean weight of" not in plain
    # The row that is shown weighs no skill of that name.
    made = policy_record(rows, ours="mine", safety="safety")
    assert made.trace is not None
    assert (made.trace.method, made.trace.safety) == ("mine", "")


def test_several_seeds_stand_together_on_a_page() -> None:
    found = Evaluations(by_seed={0: composed(), 7: evaluation(600, 2)})
    made = policy_record({"BC": rows_of(BC=evaluation(900, 57))["BC"], "PSEC": found})
    assert made.notes[-1].startswith("5 episodes of each policy, every one from the same starts, under each")
    row = made.groups[0].metrics[0].rows[1]
    assert (row.mean, row.error) == (
        found.summary()["normalized_reward"], found.summary()["normalized_reward_error"],
    )  # fmt: skip
    assert made.trace is not None
    assert made.trace.method == "PSEC", "the one that weighs something up"


def test_pictures_are_spread_over_the_episode_and_stand_in_the_page() -> None:
    trace = policy_record(evaluations()).trace
    assert trace is not None
    assert trace.frame_steps == [0, 8, 20, 28, 40, 48, 60, 68]
    assert all(frame.startswith("data:image/jpeg;base64,") for frame in trace.frames)
    unfilmed = policy_record(evaluations(frames=(), frame_steps=())).trace
    assert unfilmed is not None
    assert unfilmed.frames == []


def test_a_page_is_written_with_its_record(tmp_path: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    skills = [
        Skill(
            name=name,
            factors={
                "layer": Factors(
                    A=torch.randn(2, 4, generator=dice), B=torch.randn(5, 2, generator=dice), scaling=1.0
                )
            },
        )
        for name in NAMES
    ]
    found = policy_record(evaluations(), title="safe", skills=skills)
    page = write_page(tmp_path / policy.PAGE, found, policy.render)
    assert page == tmp_path / policy.PAGE
    made = json.loads(page.with_suffix(".json").read_text("utf-8"))
    assert page.read_text("utf-8") == render(made)
    assert set(made["similarity"]) == {
        "Cosine of what they change",
        "Overlap of the outputs that they reach",
    }
    assert made["notes"] == ["5 episodes of each policy, every one from the same starts; cost limit 5."]


def test_evaluations_of_several_environments_do_not_go_on_one_page() -> None:
    with pytest.raises(DataError, match=r"not of a/b, bullet/BallRun"):
        policy_record(rows_of(one=evaluation(1, 0), two=evaluation(1, 0, environment="a/b")))
    with pytest.raises(DataError, match="there are none"):
        policy_record({})


def test_charts_put_values_where_they_belong() -> None:
    bar = interval_bar(1.0, 0.5, (0.0, 4.0), "alt", paper=2.0, limit=3.0)
    assert 'class="bar" d="M0.0 3H250.0V17H0.0z"' in bar
    assert 'class="whisker" d="M125.0 10H375.0' in bar
    assert 'class="paper" d="M500.0 1V19"' in bar
    assert 'class="limit" d="M750.0 0V20"' in bar
    line = timeline([[0.0, 1.0]], (0.0, 1.0), "alt", costly=[False, True], risky=[True, True])
    assert 'd="M250.0 200.0L750.0 0.0"' in line
    assert 'class="costly" d="M500.0 0H1000.0V200H500.0z"' in line
    assert 'class="risky" d="M0.0 0H1000.0V200H0.0z"' in line
    from expertise.report.colours import signed_scale

    dots = dot_map([(0.0, 0.0), (2.0, 1.0)], [1.0, -1.0], signed_scale([1.0, -1.0]), "<alt>")
    assert 'aria-label="&lt;alt&gt;"' in dots
    assert re.findall(r'class="(d\d)" cx="(\d+)" cy="(\d+)"', dots) == [
        ("d0", "1000", "0"),
        ("d8", "0", "500"),
    ]
