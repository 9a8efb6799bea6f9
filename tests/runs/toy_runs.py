"""How the toy is trained in these tests, and what is compared afterwards."""

from __future__ import annotations

from pathlib import Path

from expertise.runs import checkpoint
from expertise.runs.config import TrainConfig
from expertise.runs.optim import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=0.05, schedule="constant", warmup=3)
CONFIG = TrainConfig(steps=8, batch_size=4, accumulation=2, log_every=2, save_every=3, evaluate_every=3)


def content(run: Path) -> dict[str, bytes]:
    """Everything that recipe and seed determine: metrics, and the newest checkpoint but its versions."""
    found = checkpoint.latest(run)
    assert found is not None
    names = ("model.safetensors", "optimizer.safetensors", "random.safetensors")
    return {name: (found.path / name).read_bytes() for name in names} | {
        "metrics": (run / "metrics.jsonl").read_bytes()
    }


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
