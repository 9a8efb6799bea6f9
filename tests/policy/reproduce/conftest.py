"""The scenarios in miniature: toys instead of simulators, a few steps instead of thousands."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from expertise.policy.envs import FAMILIES
from expertise.policy.envs.simulator import Family
from expertise.runs.results import Results

sys.path.insert(0, str(Path(__file__).parents[3]))

from reproduce.psec.bench import Bench
from reproduce.psec.sizes import Sizes


@pytest.fixture
def toys(toy: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenarios' environments are toys."""
    tasks = {
        "dmc": ["walker-stand", "walker-walk", "walker-run"],
        "bullet": ["BallRun"],
        "metaworld": ["a", "b"],
    }
    for name, known in tasks.items():
        family = Family(tasks=lambda known=known: known, build=lambda task: toy("left"))
        monkeypatch.setitem(FAMILIES._loaded, name, family)


@pytest.fixture
def data(write_demonstrations: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`data(name, …)`: the scenarios find data sets of these names."""

    def make(*names: str, trajectories: int = 6) -> None:
        paths = {
            name: write_demonstrations("left" if index % 2 else "right", trajectories, name)
            for index, name in enumerate(names)
        }
        known = Bench.data

        def found(self: Bench, name: str, **which: object) -> object:
            (config,) = known(self, name, **which)
            return [dataclasses.replace(config, path=str(paths[name]))]

        monkeypatch.setattr(Bench, "data", found)

    return make


@pytest.fixture
def make_bench(tmp_path: Path) -> Callable[..., Bench]:
    """`make_bench(sizes)`: of seed 3, with rows in `rows.json`."""

    def make(sizes: Sizes, scope: str = "x") -> Bench:
        results = Results(tmp_path / "rows.json", sizes.settings(), scope)
        return Bench(sizes, results, 3, tmp_path / "work", lambda line: None)

    return make
