"""Made-up evaluations of policies, and records in every shape that their page may meet."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from expertise.policy.evaluation import Episode, Evaluation, Trace
from expertise.policy.seeds import Evaluations

STEPS = 80
NAMES = ("reward", "safety")


def evaluation(gain: float, cost: float, **changes: Any) -> Evaluation:
    """Five episodes, the first step by step; fields of the trace, or of the evaluation, may be changed."""
    dice = np.random.default_rng(0)
    episodes = [
        Episode(
            seed=seed,
            steps=STEPS,
            total=gain + 20 * float(dice.standard_normal()),
            cost=max(0.0, cost + float(dice.standard_normal())),
            success=seed % 2 == 0,
        )
        for seed in range(5)
    ]
    trace: dict[str, Any] = {
        "episode": 0,
        "rewards": np.ones(STEPS),
        "costs": np.zeros(STEPS),
        "alpha": None,
        "positions": np.stack([np.linspace(0, 3, STEPS), np.sin(np.arange(STEPS) / 9)], 1),
    }
    whole: dict[str, Any] = {
        "environment": "bullet/BallRun",
        "names": (),
        "has_cost": True,
        "cost_limit": 5.0,
    }
    for key, value in changes.items():
        (trace if key in trace or key in ("risk", "frames", "frame_steps") else whole)[key] = value
    return Evaluation(**{"has_success": False, **whole}, episodes=episodes, traces=[Trace(**trace)])


def composed(**changes: Any) -> Evaluation:
    """Leans on safety in the second quarter, where the critic sees a cost ahead, which comes at its end."""
    quarter = STEPS // 4
    risk = np.full(STEPS, -0.8)
    risk[quarter : 2 * quarter] = 6.0
    costs = np.zeros(STEPS)
    costs[2 * quarter - 2 : 2 * quarter] = 1.0
    safety = np.where(risk > 0, 1.25, 0.25)
    alpha = np.stack([1.5 - safety, safety], 1)
    frames = [np.full((24, 32, 3), 10 * i, np.uint8) for i in range(20)]
    made = {"alpha": alpha, "risk": risk, "costs": costs, "frames": frames}
    made["frame_steps"] = list(range(0, STEPS, 4))
    return evaluation(420, 2, **{"names": NAMES, **made, **changes})


def rows_of(**found: Evaluation) -> dict[str, Evaluations]:
    """Row → episodes, of one seed each; "_" in a name is a space."""
    return {row.replace("_", " "): Evaluations(by_seed={0: each}) for row, each in found.items()}


def evaluations(**changes: Any) -> dict[str, Evaluations]:
    """Row → episodes."""
    return rows_of(BC=evaluation(900, 57), safety_skill=evaluation(250, 0), PSEC=composed(**changes))


def record() -> dict[str, Any]:
    """All that a page can show."""
    from expertise.report.policy_record import policy_record
    from expertise.report.records import to_json

    lines = {name: [[n, scale * math.log(n + 1)] for n in (1, 3, 10, 30)] for name, scale in _LINES}
    curve = {"title": "S→W", "x_label": "trajectories", "log": True, "lines": lines}
    found = policy_record(evaluations(), title="demo", ours="PSEC", safety="safety", notes=["Made up."])
    made = to_json(found)
    for metric, figure in zip(made["groups"][0]["metrics"], (0.15, 0.95), strict=True):
        metric["rows"][2]["paper"] = figure
    return made | {
        "curves": [curve],
        "skills": [{"name": name, "energy": [0.5, 0.9, 1.0]} for name in NAMES],
        "similarity": {"Cosine of what they change": [[1.0, -0.2], [-0.2, 1.0]]},
        "proposals": ["nothing to propose"],
    }


_LINES = (("PSEC", 200.0), ("NSEC", 90.0))


def _hostile() -> dict[str, Any]:
    made = copy.deepcopy(record())
    evil = "</script><script>alert(1)</script><b>&$"
    made["title"] = made["environment"] = made["trace"]["method"] = evil + "\ud800"
    made["groups"][0]["metrics"][0]["rows"][0]["name"] = evil * 4
    made["trace"]["names"] = [evil, "cost " + evil]
    made["trace"]["safety"] = "cost " + evil
    made["trace"]["frames"] = ['x" onerror="alert(1)']
    made["curves"][0]["title"] = evil
    made["curves"][0]["lines"][evil] = [[1, 2.0], [3, 4.0]]
    return made


def _one_step() -> dict[str, Any]:
    made = copy.deepcopy(record())
    made["trace"] |= {"alpha": [[1.0, 0.0]], "costs": [0.0], "risk": [1.0], "positions": [[1.0, 1.0]]}
    return made


def _flat() -> dict[str, Any]:
    made = copy.deepcopy(record())
    for metric in made["groups"][0]["metrics"]:
        metric["rows"] = [{"name": "PSEC", "mean": 0.0, "error": 0.0, "paper": 0.0}]
    made["trace"]["alpha"] = [[0.0, 0.0]] * STEPS
    return made


def _many() -> dict[str, Any]:
    made = copy.deepcopy(record())
    made["trace"]["names"] = [f"skill number {i}" for i in range(12)]
    made["trace"]["alpha"] = [[-0.2 * i for i in range(12)]] * STEPS
    made["groups"] *= 6
    made["curves"][0]["lines"] = {f"row {i}": [[1, i], [30, 2 * i]] for i in range(12)}
    return made


ODD: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "empty": lambda: {"groups": [], "trace": {}, "curves": [], "notes": []},
    "hostile": _hostile,
    "one step": _one_step,
    "flat": _flat,
    "many": _many,
}
