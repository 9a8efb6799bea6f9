"""Updates of IQL per CPU second: ours beside d3rlpy's, with networks of the same sizes.

One update is a step of Q (two of them), of V and of the policy, with networks of 256 × 2; at ours a step of
the critics and one of `DirectPolicy`, each in the library's own training loop. d3rlpy's is taken with and
without drawing its batch from its buffer; ours always draws. Both take turns within a process on one thread.

d3rlpy asks for an older Gymnasium; `pip install --no-deps d3rlpy` beside what it lacks is enough here. Where
it is missing, this says so and measures nothing.

    python benchmarks/policy_peer.py [--steps 200] [--repeats 5] [--batch 256]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from alternation import keep
from policy_training import ACTION, OBSERVATION, RESULTS, ROWS, WARMUP, Clocked
from torch import Tensor

from expertise.policy import (
    CRITIC_OPTIMIZER,
    POLICY_OPTIMIZER,
    Batch,
    CriticsConfig,
    CriticTask,
    PolicyTask,
    RewardCriticConfig,
)
from expertise.policy.baselines.direct import DirectConfig, Likelihood
from expertise.runs import loop
from expertise.runs.config import TrainConfig

TABLE = "iql"
LENGTH = 200
"""Transitions of an episode."""


def data() -> Batch:
    """Transitions at random: nothing is learnt, the work is the same."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(ROWS + 1, OBSERVATION, generator=generator)
    return Batch(
        observations=seen[:-1],
        actions=torch.rand(ROWS, ACTION, generator=generator) * 1.8 - 0.9,
        rewards=torch.rand(ROWS, generator=generator),
        next_observations=seen[1:],
        terminals=torch.zeros(ROWS),
    )


def ours(found: Batch, config: TrainConfig) -> tuple[float, int]:
    """Updates per CPU second, and parameters that are trained."""
    torch.manual_seed(0)
    critics = CriticsConfig(reward=RewardCriticConfig(value_norm=False)).build_for(found)
    policy = DirectConfig().build(OBSERVATION, ACTION)
    weights = torch.rand(ROWS)
    tasks = (
        (Clocked(CriticTask(critics, found, config)), CRITIC_OPTIMIZER),
        (
            Clocked(
                PolicyTask(
                    policy,
                    found.observations,
                    found.actions,
                    config,
                    weights=weights,
                    objective=Likelihood(),
                )
            ),
            POLICY_OPTIMIZER,
        ),
    )
    for task, optimizer in tasks:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            loop.train(Path(folder), task, config, optimizer)
    size = sum(p.numel() for task, _ in tasks for p in task.model.parameters() if p.requires_grad)
    return (config.steps - WARMUP) / sum(task.seconds for task, _ in tasks), size


def peer(found: Batch, config: TrainConfig) -> tuple[float, float, int]:
    """d3rlpy's updates per CPU second, with and without its drawing, and parameters that are trained."""
    import d3rlpy  # type: ignore[import-not-found]

    ends = torch.zeros(ROWS)
    ends[LENGTH - 1 :: LENGTH] = 1
    columns: tuple[Tensor, ...] = (found.observations, found.actions, found.rewards[:, None])
    dataset = d3rlpy.dataset.MDPDataset(
        *(column.numpy() for column in columns), terminals=found.terminals.numpy(), timeouts=ends.numpy()
    )
    encoder = d3rlpy.models.VectorEncoderFactory([256, 256])
    iql = d3rlpy.algos.IQLConfig(
        batch_size=config.batch_size,
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
    ).create(device=False)
    iql.build_with_dataset(dataset)
    drawing = updating = 0.0
    for step in range(config.steps):
        start = time.process_time()
        batch = dataset.sample_transition_batch(config.batch_size)
        drawn = time.process_time()
        iql.update(batch)
        if step >= WARMUP:
            drawing, updating = drawing + drawn - start, updating + time.process_time() - drawn
    modules = iql.impl.modules
    parts: list[Any] = [modules.policy, modules.q_funcs, modules.value_func]
    size = sum(p.numel() for part in parts for p in part.parameters())
    steps = config.steps - WARMUP
    return steps / (drawing + updating), steps / updating, size


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Rates of both and their ratio as tidy records."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=arguments.steps, batch_size=arguments.batch, threads=1, device="cpu")
    found, rates, sizes = data(), [], (0, 0)
    for _ in range(arguments.repeats):
        own, mine = ours(found, config)
        *theirs, size = peer(found, config)
        rates.append((own, *theirs))
        sizes = mine, size
    middle = [statistics.median(column) for column in zip(*rates, strict=True)]
    unit, times = "updates per CPU second", "times d3rlpy"
    values = [
        (f"ours, {sizes[0]} parameters", "rate", unit, middle[0]),
        (f"d3rlpy, {sizes[1]} parameters", "rate", unit, middle[1]),
        (f"d3rlpy, {sizes[1]} parameters, drawing not counted", "rate", unit, middle[2]),
        ("ours", "speed_ratio", times, statistics.median(a / b for a, b, _ in rates)),
        (
            "ours",
            "speed_ratio",
            f"{times}, drawing not counted",
            statistics.median(a / c for a, _, c in rates),
        ),
    ]
    return [
        {
            "table": TABLE,
            "setting": f"IQL, networks 256 × 2, batch={arguments.batch}",
            "row": row,
            "metric": metric,
            "unit": unit,
            "seed": 0,
            "value": value,
        }
        for row, metric, unit, value in values
    ]


def main() -> None:
    """Measure, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"steps": 200, "repeats": 5, "batch": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    if importlib.util.find_spec("d3rlpy") is None:
        print("d3rlpy is not installed: nothing is measured", file=sys.stderr)
        return
    warnings.filterwarnings("ignore")
    rows = measure(arguments)
    for row in rows:
        print(f"{row['row']:<60}{row['value']:>9.1f} {row['unit']}")
    keep(RESULTS, TABLE, rows)


if __name__ == "__main__":
    main()
