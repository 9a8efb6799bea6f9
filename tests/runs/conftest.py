"""A task that knows no language: noisy regression, whose noise comes from torch's own generator."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expertise.runs import checkpoint, loop
from expertise.runs.loop import Losses

# Under pytest's `importlib` mode a folder of tests is on no path: this makes its plain modules importable.
sys.path.insert(0, str(Path(__file__).parent))


class Toy:
    """Its losses use the global random state, so that going on exactly needs that state back."""

    unit = "rows"
    units_per_step = 4

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
        self.before_losses: Callable[[int, int], None] = lambda step, micro: None
        self.before_batch: Callable[[int], None] = lambda batch: None
        self.batches = 3
        self.factor = 1.0

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        self.before_losses(step, micro)
        x = torch.randn(2, 3)
        loss = (self.model(x) - x.sum(-1, keepdim=True)).square().mean() * self.factor
        return Losses(loss, {"loss": loss}, {"table": torch.tensor([1.0, float(step)])} if detail else {})

    def after_step(self) -> None:
        """Nothing follows a step."""

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        for batch in range(self.batches):
            self.before_batch(batch)
            between()
        return {"score": float(self.model(torch.ones(1, 3)).detach())}

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        return f"score {evaluation['score']:.3f}"

    def files(self) -> Mapping[str, str]:
        return {"toy.json": "{}\n"}


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture
def undisturbed(tmp_path: Path, toy: type[Toy]) -> dict[str, bytes]:
    """What a toy's run comes to when nothing happens to it."""
    from toy_runs import CONFIG, OPTIMIZER, content, steps

    run = tmp_path / "undisturbed"
    loop.train(run, toy(), CONFIG, OPTIMIZER)
    assert steps(run) == ["step-6", "step-8"]
    return content(run)


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


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[..., Any]]:
    """`start(target, …)`: a function of `faulty` in a process of its own."""
    from faulty import forked

    yield from forked()


@pytest.fixture
def recipe_file(tmp_path: Path, small_recipe: Callable[..., Any]) -> Callable[..., Path]:
    """Write the small recipe, with settings applied, to a file."""
    from expertise.runs import recipe as recipes

    def write(*settings: str) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(recipes.to_toml(small_recipe(*settings)), "utf-8")
        return path

    return write


@pytest.fixture
def damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, str, str], None]:
    """Damage one file of a finished run's last checkpoint in one way, go on, and expect the same end."""
    from faulty import DAMAGE, content

    from expertise.lm.recipe import Recipe
    from expertise.lm.train import train
    from expertise.runs import folder

    def check(finished: Path, name: str, damage: str) -> None:
        run = Path(shutil.copytree(finished, tmp_path / "run"))
        last = checkpoint.latest(run)
        assert last is not None
        DAMAGE[damage](last.path / name)
        train(folder.read_recipe(run, Recipe), run, lambda _: None)
        said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
        assert len(said) == 1
        assert said[0].startswith(f"damaged checkpoint {last.path}: {name} ")
        assert said[0].endswith("; trying the one before")
        assert content(run) == content(finished)
        aside = {path.name for path in (run / "checkpoints").iterdir()}
        assert aside == {path.name for path in (finished / "checkpoints").iterdir()} | {
            f"{last.path.name}.damaged"
        }

    return check
