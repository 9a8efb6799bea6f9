"""CPU time per action: a policy composed of skills beside its base; and episodes at once beside one by one.

A policy with two skills of rank 8 and a learned alpha(s) takes turns with its base, for one state and N
candidates, within one process; so do twenty episodes at once and one after another, where the simulators are
installed. Quote the ratios, not the times.

    python benchmarks/policy_acting.py [--repeats 25] [--calls 40]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from alternation import keep

from expertise.policy import NETWORKS, DiffusionPolicy, PolicyConfig
from expertise.policy.acting import Policy
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.compose import ComposedPolicy
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.growing import GrowthConfig
from expertise.skills.skill import Skill

RESULTS = Path(__file__).parents[1] / "docs/results/policy_speed.json"
TABLE = "acting"
OBSERVATION, ACTION = 24, 6
ENVIRONMENT = "dmc/walker-walk"
BASE = "base alone"


def skill(base: DiffusionPolicy, name: str, seed: int) -> Skill:
    """One that changes something."""
    new = GrowthConfig().new(base.acting, name, seed)
    factors = {a: dataclasses.replace(f, B=torch.randn_like(f.B) * 0.01) for a, f in new.factors.items()}
    return dataclasses.replace(new, factors=factors)


def policies(network: str) -> dict[str, Policy]:
    """Row → policy, all over one base."""
    torch.manual_seed(0)
    base = PolicyConfig(network=NETWORKS[network].Config()).build(OBSERVATION, ACTION).eval()
    skills, alpha = [skill(base, name, seed) for seed, name in enumerate(("a", "b"))], ALPHA.config()
    each = [ComposedPolicy(base, [one], alpha) for one in skills]
    return {
        BASE: base,
        "PSEC": ComposedPolicy(base, skills, alpha).eval(),
        "NSEC (LoRA)": NoiseComposition(each, ["a", "b"], alpha).eval(),
        "ASEC (LoRA)": ActionComposition(each, ["a", "b"], alpha).eval(),
    }


def compared(tasks: dict[str, Callable[[], object]], repeats: int, calls: int) -> dict[str, list[float]]:
    """CPU seconds per call of each task, once per round; the tasks take turns."""
    seconds: dict[str, list[float]] = {row: [] for row in tasks}
    for task in tasks.values():
        task()
    for _ in range(repeats):
        for row, task in tasks.items():
            start = time.process_time()
            for _ in range(calls):
                task()
            seconds[row].append((time.process_time() - start) / calls)
    return seconds


def acting(network: str, candidates: int, repeats: int, calls: int) -> list[dict[str, object]]:
    """Times of one action, and ratios to the base's."""
    seen, rows = torch.randn(1, OBSERVATION), policies(network)
    noise = torch.randn(rows[BASE].num_sheets, 1, candidates, ACTION)
    tasks = {row: (lambda policy=policy: policy.act(seen, noise=noise)) for row, policy in rows.items()}
    seconds = compared(tasks, repeats, calls if candidates == 1 else max(1, calls // 8))
    size = NETWORKS[network].Config().num_params(OBSERVATION, ACTION)
    setting = f"network={network} parameters={size} N={candidates}"
    records = []
    for row, found in seconds.items():
        records.append(record(setting, row, "milliseconds", "CPU ms per action", 1e3 * min(found)))
        if row != BASE:
            ratio = statistics.median(one / other for one, other in zip(found, seconds[BASE], strict=True))
            records.append(record(setting, row, "time_ratio", "times the base", ratio))
    return records


def evaluating(network: str, repeats: int) -> list[dict[str, object]]:
    """Steps per CPU second of an evaluation of twenty episodes, at once and one after another."""
    policy = policies(network)["PSEC"]
    settings = {
        f"{n} at once": EvaluationConfig(environment=ENVIRONMENT, episodes=n, parallel=n) for n in (1, 20)
    }
    steps = dict.fromkeys(settings, 0)

    def task(row: str) -> None:
        steps[row] = sum(episode.steps for episode in evaluate(policy, settings[row]).episodes)

    seconds = compared({row: (lambda row=row: task(row)) for row in settings}, repeats, 1)
    rates = {row: [steps[row] / s for s in found] for row, found in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(rates["20 at once"], rates["1 at once"], strict=True))
    setting = f"network={network} environment={ENVIRONMENT} N=1"
    values = [record(setting, row, "rate", "steps per CPU second", max(r)) for row, r in rates.items()]
    return [*values, record(setting, "20 at once", "speed_ratio", "times one at a time", ratio)]


def record(setting: str, row: str, metric: str, unit: str, value: float) -> dict[str, object]:
    """A tidy row."""
    return {
        "table": TABLE,
        "setting": setting,
        "row": row,
        "metric": metric,
        "unit": unit,
        "seed": 0,
        "value": value,
    }


def main() -> None:
    """Measure, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"repeats": 25, "calls": 40}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in ("residual", "mlp"):
        for candidates in (1, 64):
            rows += acting(network, candidates, arguments.repeats, arguments.calls)
    if importlib.util.find_spec("dm_control"):
        for network in ("residual", "mlp"):
            rows += evaluating(network, 3)
    for row in rows:
        print(f"{row['setting']:<55}{row['row']:<14}{row['metric']:<14}{row['value']:>9.3f} {row['unit']}")
    keep(RESULTS, TABLE, rows)


if __name__ == "__main__":
    main()
