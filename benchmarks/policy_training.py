"""Steps of training a diffusion policy per CPU second: ours beside a bare PyTorch loop.

The bare loop has the same network, loss, batches and fused AdamW, and nothing else: no average of the
weights, no look at whether numbers are finite, no metrics, no checkpoint. Both take turns within one process,
for the small network with four times the steps; quote the ratios, not the rates.

    python benchmarks/policy_training.py [--steps 120] [--repeats 7] [--batch 256]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from alternation import keep
from torch import Tensor, nn

from expertise.policy import NETWORKS, POLICY_OPTIMIZER, PolicyConfig, PolicyTask
from expertise.runs import loop
from expertise.runs.config import TrainConfig
from expertise.runs.loop import Losses

RESULTS = Path(__file__).parents[1] / "docs/results/policy_speed.json"
TABLE = "training"
OBSERVATION, ACTION, ROWS, WARMUP = 24, 6, 20_000, 20


class Clocked:
    """A task whose steps are timed, without what comes before the first and after the last."""

    unit = "transitions"

    def __init__(self, task: loop.Task) -> None:
        self._task = task
        self.units_per_step = task.units_per_step
        self.seconds = 0.0

    @property
    def model(self) -> nn.Module:
        """The policy."""
        return self._task.model

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """The task's; the clock starts after the first steps."""
        if step == WARMUP:
            self.seconds = -time.process_time()
        return self._task.losses(step, micro, detail)

    def after_step(self) -> None:
        """The task's."""
        self._task.after_step()

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Nothing; here the last step is over, with its line of metrics."""
        self.seconds += time.process_time()
        return {}

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """Nothing."""
        return ""

    def files(self) -> Mapping[str, str]:
        """None."""
        return {}


def ours(network: str, data: tuple[Tensor, Tensor], config: TrainConfig) -> float:
    """Steps per CPU second of the library's loop."""
    torch.manual_seed(0)
    policy = PolicyConfig(network=NETWORKS[network].Config()).build(OBSERVATION, ACTION)
    task = Clocked(PolicyTask(policy, *data, config))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        loop.train(Path(folder), task, config, POLICY_OPTIMIZER)
    return (config.steps - WARMUP) / task.seconds


def bare(network: str, data: tuple[Tensor, Tensor], config: TrainConfig) -> float:
    """Steps per CPU second of the shortest loop that learns the same."""
    torch.manual_seed(0)
    policy = PolicyConfig().build(OBSERVATION, ACTION)
    net, diffusion = NETWORKS[network].Config().build(OBSERVATION, ACTION).train(), policy.diffusion
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-4, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    observations, actions = data
    start = 0.0
    for step in range(config.steps):
        if step == WARMUP:
            start = time.process_time()
        rows = torch.randint(ROWS, (config.batch_size,))
        times = torch.randint(diffusion.num_steps, (config.batch_size,))
        wanted = torch.randn(config.batch_size, ACTION)
        noisy = diffusion.signal[times, None] * actions[rows] + diffusion.noise[times, None] * wanted
        loss = (net(noisy, times, observations[rows]) - wanted).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return (config.steps - WARMUP) / (time.process_time() - start)


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Rates of both loops and their ratio, for each network, as tidy records."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = (
        torch.randn(ROWS, OBSERVATION, generator=generator),
        torch.rand(ROWS, ACTION, generator=generator) * 2 - 1,
    )
    rows: list[dict[str, object]] = []
    for network in ("residual", "mlp"):
        steps = arguments.steps if network == "residual" else 4 * arguments.steps
        config = TrainConfig(steps=steps, batch_size=arguments.batch, threads=1, device="cpu")
        rates: dict[str, list[float]] = {"ours": [], "bare PyTorch": []}
        for _ in range(arguments.repeats):
            rates["ours"].append(ours(network, data, config))
            rates["bare PyTorch"].append(bare(network, data, config))
        ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
        values = [(row, "rate", "steps per CPU second", statistics.median(r)) for row, r in rates.items()]
        size = NETWORKS[network].Config().num_params(OBSERVATION, ACTION)
        for row, metric, unit, value in [*values, ("ours", "speed_ratio", "times bare PyTorch", ratio)]:
            rows.append(
                {
                    "table": TABLE,
                    "setting": f"network={network} parameters={size} batch={arguments.batch}",
                    "row": row,
                    "metric": metric,
                    "unit": unit,
                    "seed": 0,
                    "value": value,
                }
            )
    return rows


def main() -> None:
    """Measure, print, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"steps": 120, "repeats": 7, "batch": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    rows = measure(parser.parse_args())
    for row in rows:
        print(f"{row['setting']:<50}{row['row']:<14}{row['metric']:<14}{row['value']:>9.3f} {row['unit']}")
    keep(RESULTS, TABLE, rows)


if __name__ == "__main__":
    main()
