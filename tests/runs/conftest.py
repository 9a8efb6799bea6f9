"""A task that knows no language: noisy regression, whose noise comes from torch's own generator."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expertise.runs import checkpoint
from expertise.runs.loop import Losses


class Toy:
    """Its losses use the global random state, so that going on exactly needs that state back."""

    unit = "rows"
    units_per_step = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.before_losses: Callable[[int, int], None] = lambda step, micro: None
        self.factor = 1.0

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        self.before_losses(step, micro)
        x = torch.randn(2, 3)
        loss = (self.model(x) - x.sum(-1, keepdim=True)).square().mean() * self.factor
        return Losses(loss, {"loss": loss}, {"table": torch.tensor([1.0, float(step)])} if detail else {})

    def after_step(self) -> None:
        """Nothing follows a step."""

    def evaluate(self) -> dict[str, Any]:
        return {"score": float(self.model(torch.ones(1, 3)).detach())}

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        return f"score {evaluation['score']:.3f}"

    def files(self) -> Mapping[str, str]:
        return {"toy.json": "{}\n"}


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture(autouse=True)
def _threads(same_threads: None) -> None:
    """No test here leaves another number of threads behind."""


@pytest.fixture
def save_small(tmp_path: Path) -> Callable[..., Path]:
    """Write checkpoints of a few numbers; the run's folder comes back."""

    def save(*steps: int, keep: int = 10, keep_every: int = 0, run: Path | None = None) -> Path:
        run = run or tmp_path / "run"
        for step in steps:
            tensors = {"model": {"w": torch.full((3, 2), float(step))}, "random": {"cpu": torch.arange(9)}}
            checkpoint.save(run, step, tensors, {"model.json": "{}\n"}, keep=keep, keep_every=keep_every)
        return run

    return save


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may mount one."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
