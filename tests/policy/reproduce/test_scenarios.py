"""Every row of every scenario comes, once, and from the same data for all methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from expertise.policy import load
from expertise.policy.data.scores import normalized_cost
from reproduce.psec import dynamics, many_tasks, ours, policy_shift, safe
from reproduce.psec.bench import Bench
from reproduce.psec.sizes import Sizes

FEW: dict[str, Any] = {
    "batch_size": 8,
    "base_steps": 8,
    "skill_steps": 8,
    "scratch_steps": 8,
    "alpha_steps": 2,
    "action_steps": 2,
    "rank": 2,
    "episodes": 2,
}


def rows(bench: Bench, table: str) -> set[tuple[str, str]]:
    return {(row.setting, row.row) for row in bench.results.rows if row.table == table}


@pytest.mark.usefixtures("toys")
def test_policy_shift(
    make_bench: Callable[..., Bench], data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data("walker-stand-apart", "walker-walk", "walker-run", trajectories=4)
    monkeypatch.setattr(policy_shift, "CELL", ("S→W", 3))
    monkeypatch.setattr(policy_shift, "RANKS", (4,))
    # Skills and policies from scratch need not be trained for equally long.
    bench = make_bench(Sizes(**{**FEW, "scratch_steps": 16}))
    shift = policy_shift.PolicyShift(bench, note=", small")
    shift.cell("S→W", 3)
    shift.cell("S+W→R", 1)
    assert rows(bench, "policy_shift") == {
        (setting, row) for setting in ("S→W/3, small", "S+W→R/1") for row in policy_shift.ORDER
    }
    shift.ablate()
    assert rows(bench, "ablation") == {
        ("rank 4", "PSEC"),
        ("fixed weights", "NSEC"),
        ("fixed weights", "ASEC"),
    }
    own = {(f"step {step}", row) for step in range(1, 9) for row in ("PSEC", "PSEC (MLP)")}
    assert rows(bench, "training") == own | {(f"step {step}", "Scratch") for step in range(2, 17, 2)}
    before = bench.results.path.read_bytes()
    monkeypatch.setattr(bench, "learn", None)
    shift.cell("S→W", 3)
    shift.ablate()
    assert bench.results.path.read_bytes() == before


@pytest.mark.usefixtures("toys")
def test_safe_control_has_a_table_for_each_limit(
    make_bench: Callable[..., Bench], data: Callable[..., None]
) -> None:
    data("BallRun")
    sizes = safe.SafeSizes(**FEW, critic_steps=4, target_cost=100.0, target_trajectories=2)
    bench = make_bench(sizes)
    safe.Safe(bench, sizes, "BallRun").measure()
    for table in safe.TABLES:
        assert rows(bench, table) == {("BallRun", row) for row in safe.ORDER}
    for row in safe.ORDER:
        found = {
            (r.table, r.metric): r.value
            for r in bench.results.rows
            if r.row == row and r.metric in ("cost", "normalized_cost")
        }
        assert found["multi_objective", "cost"] == found["multi_objective_limit_10", "cost"]
        mean = found["multi_objective", "cost"]
        assert found["multi_objective", "normalized_cost"] == pytest.approx(normalized_cost(mean, 5.0))
        assert found["multi_objective_limit_10", "normalized_cost"] == pytest.approx(mean / 10)
        alone = found["multi_objective_one_action", "cost"]
        assert found["multi_objective_one_action", "normalized_cost"] == pytest.approx(alone / 5)


@pytest.mark.usefixtures("toys")
def test_changed_dynamics(
    make_bench: Callable[..., Bench], data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data("walker-nominal", "walker-heavy")
    case = dynamics.Case(source="walker-nominal", target="walker-heavy", environment="dmc/walker-walk")
    monkeypatch.setattr(dynamics, "CASES", {"walker/heavy": case})
    bench = make_bench(dynamics.DynamicsSizes(**FEW, critic_steps=4, trajectories=2))
    dynamics.measure(bench)
    assert rows(bench, "dynamics_shift") == {("walker/heavy", row) for row in dynamics.ORDER}


@pytest.mark.usefixtures("toys")
def test_many_tasks_and_nothing_is_forgotten(
    make_bench: Callable[..., Bench], data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data("a", "b", "c", "d")
    for name in ("KNOWN", "UNSEEN"):
        monkeypatch.setattr(many_tasks, name, ("a", "d") if name == "KNOWN" else ("b", "c"))
    monkeypatch.setattr(many_tasks, "COUNTS", (1, 3))
    monkeypatch.setattr(
        many_tasks.ManyTasks,
        "_data",
        lambda self, task, count: self.bench.data(task, trajectories=min(count, 6)),
    )
    monkeypatch.setattr(
        many_tasks.ManyTasks,
        "_outcome",
        lambda self, policy, task: self.bench.outcome(policy, "metaworld/a", stop_at_success=True),
    )
    sizes = many_tasks.TaskSizes(**{**FEW, "network": "mlp"})
    bench = make_bench(sizes)
    many_tasks.measure(bench)
    settings = {(f"{task}/3", row) for task in "bc" for row in many_tasks.ORDER}
    settings |= {(f"{task}/1", row) for task in "bc" for row in many_tasks.ORDER}
    settings |= {(f"{t}/0", row) for t in "bc" for row in ("PSEC", "NSEC (LoRA)", "ASEC (LoRA)", "Base")}
    assert rows(bench, "meta_world") == settings
    success = {(r.setting, r.row): r.value for r in bench.results.rows if r.table == "meta_world_continual"}
    assert set(success) == {
        *(("after 0 new", task) for task in "ad"),
        *(("after 1 new", task) for task in "adb"),
        *(("after 2 new", task) for task in "adbc"),
    }
    for task in "ad":
        assert success["after 0 new", task] == success["after 1 new", task]
    for task in "adb":
        assert success["after 1 new", task] == success["after 2 new", task]


@pytest.mark.usefixtures("toys")
def test_one_library(
    make_bench: Callable[..., Bench], data: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data("walker-stand-apart", "walker-walk", "walker-run", "walker-heavy", trajectories=4)
    monkeypatch.setattr(ours, "SHOWN", 3)
    monkeypatch.setattr(
        ours,
        "SOURCES",
        {
            "walk": ("walker-walk", "dmc/walker-walk"),
            "run": ("walker-run", "dmc/walker-run"),
            "gravity": ("walker-heavy", "dmc/walker-walk"),
        },
    )
    bench = make_bench(Sizes(**FEW))
    ours.measure(bench)
    assert rows(bench, "one_library") == {
        (f"{target}/3", row) for target in ours.TARGETS for row in ours.ORDER
    }
    # A target's composition never sees the target's skill of many trajectories.
    others = load(str(bench.folder / "gravity/others"))
    assert list(others.names) == ["walk", "run"]


def test_sizes_of_every_scenario_stand_in_the_results() -> None:
    for module in (policy_shift, safe, dynamics, many_tasks):
        assert module.SIZES.settings() == dataclasses.asdict(module.SIZES)
