"""The page of PSEC's results: tables, the paper beside them, and which claims hold, from rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from expertise.policy import PolicyConfig
from expertise.policy.evaluation import Episode, Evaluation, Trace
from expertise.policy.network import PlainNetwork
from expertise.runs.results import Results, Row
from reproduce.psec import shown
from reproduce.psec.page import page_text, record, write_psec_page
from reproduce.psec.paper import paper_value
from reproduce.psec.verdicts import limits, verdicts


def results(path: Path, *rows: Row) -> Results:
    made = Results(path / "psec.json")
    made.add(rows)
    return made


def rows(table: str, setting: str, metric: str, values: Mapping[str, Sequence[float]]) -> list[Row]:
    return [
        Row(table=table, setting=setting, row=name, metric=metric, unit="", seed=seed, value=value)
        for name, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]


def shift(psec: Sequence[float], setting: str = "S→W/10") -> list[Row]:
    rivals = {"NSEC": [300, 320, 310, 330, 340], "ASEC": [60, 70, 80, 90, 100], "Scratch": [50] * 5}
    values = {"PSEC": psec, **rivals}
    return rows("policy_shift", setting, "return", {k: [float(x) for x in v] for k, v in values.items()})


def verdict(found: Results, start: str) -> str:
    (line,) = [line for line in verdicts(found).splitlines() if line.startswith(f"- {start}")]
    return line


@pytest.mark.parametrize(
    ("psec", "words"),
    [
        ([680, 700, 690, 720, 650], "holds (NSEC +368 ± 15, 5 seeds;"),
        # Above on average, yet by less than two standard errors.
        ([300, 320, 310, 330, 400], "**does not hold**"),
        # Clearly above, but too few seeds to say so.
        ([680, 700, 690], "open, with fewer than 5 seeds"),
    ],
)
def test_the_cell_that_was_fixed_beforehand(psec: list[float], words: str, tmp_path: Path) -> None:
    assert words in verdict(results(tmp_path, *shift(psec)), "Policy shift, S→W/10")


def test_the_other_cells_are_summed_up_by_trajectories(tmp_path: Path) -> None:
    three = [*shift([500.0] * 5, "S→W/3"), *shift([200.0] * 5, "S→R/3")]
    found = results(tmp_path, *shift([680.0] * 5), *three, *shift([100.0] * 5, "S→W/10, 0.15 M"))
    said = verdict(found, "Policy shift, small network, 3 trajectories")
    # Means of 320, 80 and 50 are what the others return; of two cells one is below NSEC.
    assert "NSEC +30, above in 1 of 2; ASEC +270, above in 2 of 2; Scratch +300, above in 2 of 2." in said
    assert "NSEC -220, above in 0 of 1" in verdict(found, "Policy shift, small network, 10 trajectories")


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    found = results(tmp_path)
    assert [line.endswith("not measured.") for line in verdicts(found).splitlines()] == [True] * 5
    partly = results(tmp_path, *shift([1.0])[:1])
    assert verdict(partly, "Policy shift").endswith("not measured.")


@pytest.mark.parametrize(
    ("reward", "cost", "holds"),
    [
        ([0.4, 0.41, 0.42], [0.2, 0.4, 0.3], True),
        ([0.4, 0.41, 0.42], [0.9, 1.3, 1.2], False),
        ([0.2, 0.1, 0.3], [0.2, 0.4, 0.3], False),
    ],
)
def test_safe_control_needs_a_low_cost_and_more_reward(
    reward: list[float], cost: list[float], holds: bool, tmp_path: Path
) -> None:
    found = results(
        tmp_path,
        *rows("multi_objective", "CarRun", "normalized_reward", {"PSEC": reward, "safety skill": [0.2] * 3}),
        *rows("multi_objective", "CarRun", "normalized_cost", {"PSEC": cost, "safety skill": [0.0] * 3}),
    )
    line = verdict(found, "Safe control, CarRun")
    assert ("**does not hold**" not in line) is holds
    assert "holds" in line or not holds


def test_dynamics_and_many_tasks(tmp_path: Path) -> None:
    better = {"PSEC": [0.5, 0.6, 0.7], "Scratch": [0.3, 0.2, 0.4], "Joint": [0.4, 0.5, 0.6]}
    found = results(
        tmp_path,
        *rows("dynamics_shift", "hopper/gravity-1.5", "normalized_reward", better),
        *(
            row
            for task in "abcde"
            for row in rows("meta_world", f"{task}/3", "success", {"PSEC": [0.7] * 3, "Scratch": [0.2] * 3})
        ),
    )
    line = verdict(found, "Dynamics shift, hopper/gravity-1.5")
    assert "holds (Scratch +0.300 ± 0.058, 3 seeds; Joint +0.100 ± 0.000, 3 seeds)" in line
    assert "holds (+0.500 ± 0.000, 3 seeds, over 5 tasks)" in verdict(found, "Meta-World, 3")


def test_holds_means_two_standard_errors_everywhere(tmp_path: Path) -> None:
    """Means on the claimed side by less than that do not hold, whatever the claim is about."""
    wide = {"PSEC": [0.9, 0.3, 0.3], "Scratch": [0.3, 0.3, 0.2], "Joint": [0.3, 0.3, 0.2]}
    tasks = {"PSEC": [0.9, 0.2, 0.2], "Scratch": [0.2, 0.2, 0.2]}
    found = results(
        tmp_path,
        *rows("dynamics_shift", "walker/x", "return", wide),
        *(row for task in "abcde" for row in rows("meta_world", f"{task}/3", "success", tasks)),
        *rows(
            "multi_objective", "BallRun", "normalized_reward", {"PSEC": [1.0] * 3, "safety skill": [0.1] * 3}
        ),
        *rows("multi_objective", "BallRun", "normalized_cost", {"PSEC": [0.1, 0.1, 2.0]}),
    )
    for claim in ("Dynamics shift, walker/x", "Meta-World, 3", "Safe control, BallRun"):
        assert "**does not hold**" in verdict(found, claim)


def test_what_the_comparisons_do_not_show(tmp_path: Path) -> None:
    level = {"PSEC": [1.0, 2.0, 3.0], "NSEC (LoRA)": [1.1, 1.9, 3.0], "Scratch": [0.1, 0.2, 0.3]}
    few = {"PSEC": [0.5] * 3, "IQL": [0.7, 0.8, 0.9], "Scratch": [0.1] * 3, "Joint": [0.1] * 3}
    safe = {"PSEC": [0.5] * 3, "BC": [0.6] * 3, "NSEC": [0.7] * 3, "safety skill": [0.1] * 3}
    cost = {"PSEC": [0.0] * 3, "BC": [0.1, 0.2, 0.1], "NSEC": [3.0] * 3, "safety skill": [0.0] * 3}
    found = results(
        tmp_path,
        *rows("policy_shift", "S→W/10", "return", level),
        *rows("policy_shift", "S+W→R/10", "return", {name: [0.0] * 3 for name in level}),
        *rows("meta_world", "a/3", "success", level),
        *rows("meta_world_continual", "after 0 new", "success", {"reach": [0.8]}),
        *rows("dynamics_shift", "walker/x", "return", few),
        *rows("multi_objective", "BallRun", "normalized_reward", safe),
        *rows("multi_objective", "BallRun", "normalized_cost", cost),
    )
    said = limits(found)
    assert "policy shift, NSEC (LoRA) +0 ± 0, 3 seeds, above in 0 and below in 0 of 1 cell" in said
    assert "difference of +1.80 shrinks" in said
    assert "IQL" in said
    assert "above PSEC in 1 of 1 case, in 1 by more than 2 standard errors" in said
    assert "BallRun: BC are safe and faster" in said, "NSEC is not safe"
    assert "because the task is told" in said
    page = write_psec_page(found)[0].read_text("utf-8")
    assert said in page
    assert page.index("## What holds") < page.index("## What the comparisons do not show")
    assert limits(results(tmp_path / "none")) == "- Nothing was measured yet.\n"


def test_the_committed_page_is_that_of_the_committed_rows() -> None:
    committed = Path(__file__).parents[2] / "docs/results/psec.json"
    pictures = {
        (table, metric): name
        for table, metric in (
            ("policy_shift", "return"),
            ("multi_objective", "normalized_reward"),
            ("multi_objective", "normalized_cost"),
        )
        if (committed.parent / (name := f"psec_{table}_{metric}.svg")).is_file()
    }
    page = page_text(Results(committed), pictures)
    assert page == committed.with_suffix(".md").read_text("utf-8"), "python -m reproduce.psec --page"
    assert "16,000" in page


@pytest.mark.parametrize(
    ("later", "words"), [(0.8, "holds (2 tasks, 2 seeds)"), (0.75, "**does not hold** (reach, seed 0)")]
)
def test_forgetting_is_seen(later: float, words: str, tmp_path: Path) -> None:
    found = results(
        tmp_path,
        *rows("meta_world_continual", "after 0 new", "success", {"reach": [0.8, 0.9]}),
        *rows("meta_world_continual", "after 1 new", "success", {"reach": [later, 0.9], "push": [0.5, 0.4]}),
    )
    assert words in verdict(found, "Meta-World, one task after the other")


def test_one_library_says_what_is_gained_and_what_is_lost(tmp_path: Path) -> None:
    values = {"own skill": [700.0, 720.0], "own and others": [740.0, 700.0], "other skills": [300.0, 340.0]}
    said = verdict(results(tmp_path, *rows("one_library", "gravity/3", "return", values)), "One library")
    assert said == (
        "- One library, gravity/3 trajectories, what changes the return: "
        "other skills beside its own +10 ± 30, 2 seeds; other skills in place of its own -390 ± 10, 2 seeds."
    )


def test_tables_show_errors_and_the_papers_figures(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        *shift([680, 700, 690, 720, 650]),
        *shift([300, 300, 300, 300, 300], "S→W/1"),
        *rows("multi_objective_limit_10", "BallRun", "normalized_cost", {"PSEC": [0.5, 0.7]}),
        *rows("multi_objective_limit_10", "BallRun", "normalized_reward", {"PSEC": [0.2, 0.3]}),
        *rows("multi_objective", "BallRun", "normalized_cost", {"PSEC": [0.5, 0.7]}),
    )
    written = write_psec_page(found)
    assert [path.name for path in written] == [
        "psec.md",
        "psec_policy_shift_return.svg",
        "psec_multi_objective_normalized_cost.svg",
        "psec.html",
    ]
    text = written[0].read_text("utf-8")
    # 688 in seeds whose deviation is 26 has an error of 11.6 over five seeds.
    assert "| row | S→W/1 | S→W/10 | S→W/10, paper |" in text
    assert "| PSEC | 300.0 ± 0.0 | **688.0 ± 11.6** | **688.0** |" in text
    assert "| row | BallRun | BallRun, paper |" in text
    assert "| PSEC | 0.60 ± 0.10 | 0.95 |" in text
    assert "| row | BallRun |\n" in text
    assert "](psec_policy_shift_return.svg)" in text
    assert all(path.stat().st_size > 1000 for path in written)


def test_the_record_has_means_over_tasks_and_curves(tmp_path: Path) -> None:
    found = results(
        tmp_path,
        *shift([1, 2, 3, 4, 5], "S→W/1"),
        *shift([680, 700, 690, 720, 650]),
        *rows("meta_world", "a/3", "success", {"PSEC": [0.7, 0.5]}),
        *rows("meta_world", "b/3", "success", {"PSEC": [0.5, 0.5]}),
    )
    found.add(rows("training", "step 200", "return", {"PSEC": [4.0]}))
    found.add(rows("training", "step 50", "return", {"PSEC": [2.0]}))
    found.add(shift([680.0] * 5, "S→W/10, 0.15 M"))
    made = record(found)
    assert made.curves[1].lines == {"PSEC": [[50.0, 2.0], [200.0, 4.0]]}
    moved, tasks, _ = made.groups
    assert [metric.setting for metric in moved.metrics] == ["S→W/10", "S→W/1", "S→W/10, 0.15 M"]
    first = moved.metrics[0].rows[0]
    assert (first.name, first.mean, first.paper) == ("PSEC", 688.0, 688.0)
    assert first.error == pytest.approx(11.5758, abs=1e-3)
    (metric,) = tasks.metrics
    assert metric.setting == "3 demonstrations"
    (row,) = metric.rows
    assert (row.name, row.paper) == ("PSEC", None)
    assert (row.mean, row.error) == pytest.approx((0.55, 0.05))
    assert made.curves[0].lines["PSEC"] == [[1.0, 3.0], [10.0, 680.0]]


def test_an_episode_that_was_kept_stands_on_the_page(tmp_path: Path) -> None:
    found = results(tmp_path, *shift([1.0, 2.0]))
    write_psec_page(found)
    assert "leans on" not in (tmp_path / "psec.html").read_text("utf-8")
    steps = np.arange(20.0)
    trace = Trace(
        episode=0,
        rewards=steps,
        costs=np.where(steps > 15, 1.0, 0.0),
        alpha=np.stack([steps, -steps], 1),
        positions=np.stack([steps, steps], 1),
    )
    episode = Episode(seed=0, steps=20, total=1.0, cost=4.0, success=False, alpha=(0.0, 0.0))
    evaluation = Evaluation(
        environment="bullet/BallCircle",
        names=("reward", "safety"),
        has_cost=True,
        has_success=False,
        cost_limit=5.0,
        episodes=[episode],
        traces=[trace],
    )
    policy = PolicyConfig(network=PlainNetwork.Config(hidden=8)).build(3, 2)
    shown.keep(found.path, "PSEC in BallCircle, seed 0", policy, evaluation)
    write_psec_page(found)
    text = (tmp_path / "psec.html").read_text("utf-8")
    assert "An episode of bullet/BallCircle: up to 10 steps before a cost" in text
    assert "PSEC in BallCircle, seed 0" in text
    assert text.count('class="dots"') == 2


@pytest.mark.parametrize(
    ("setting", "row", "metric", "value"),
    [
        ("bullet/BallRun", "PSEC", "normalized_reward", 0.15),
        ("CarCircle", "NSEC", "normalized_cost", 2.62),
        ("S→W/10", "PSEC", "return", 688.0),
        ("S+W→R/10", "Scratch", "return", 25.5),
        ("S→W/3", "PSEC", "return", None),
        ("rank 8", "PSEC", "return", 680.0),
        ("stick-pull/10", "PSEC", "success", 0.74),
        ("stick-pull/10", "Scratch", "success", None),
        ("bullet/BallRun", "PSEC", "cost", None),
        ("bullet/BallRun", "Joint", "normalized_cost", None),
    ],
)
def test_figures_of_the_paper(setting: str, row: str, metric: str, value: float | None) -> None:
    assert paper_value(setting, row, metric) == value
