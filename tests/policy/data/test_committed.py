"""The teachers' data in the repository: whole, small, and what their recipes say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from expertise.policy.data import read
from expertise.policy.data.collect import CollectConfig
from expertise.policy.data.shipped import PREFIX, located, names
from expertise.policy.data.write import facts_of
from expertise.policy.envs import Name
from expertise.runs import recipe as recipes

FOLDER = Path(__file__).parents[3] / "reproduce" / "psec" / "data"
FILES = sorted([*FOLDER.glob("*.hdf5"), *(Path(located(f"{PREFIX}{name}")) for name in names())])
RECIPES = sorted(FOLDER.glob("*.toml"))


def test_files_are_whole_and_small() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    sums = {(FOLDER / name).resolve(): digest for digest, name in (line.split("  ") for line in lines)}
    assert sums == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}
    assert sum(path.stat().st_size for path in FILES) < 20e6


def config(path: Path) -> CollectConfig:
    return recipes.build(recipes.parse(path.read_text("utf-8"), path.name), CollectConfig)


def test_every_file_has_its_recipe_and_no_two_the_same() -> None:
    made = [data.name for path in RECIPES for data in config(path).datasets]
    assert sorted(made) == sorted(set(made))
    assert {path.stem for path in FILES} <= set(made)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_what_its_recipe_says(path: Path) -> None:
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    data, facts = read(path), facts_of(path)
    found = next(d for recipe in RECIPES for d in config(recipe).datasets if d.name == path.stem)
    assert [(r.teacher, r.episodes, r.checkpoint) for r in found.rollouts] == [
        (r["teacher"], r["episodes"], r["checkpoint"]) for r in facts["rollouts"]
    ]
    assert (facts["bits"], facts["seed"]) == (found.bits, found.seed)
    trajectories = data.trajectories()
    assert len(trajectories) == sum(rollout.episodes for rollout in found.rollouts)
    # What was noted when the episodes were made is what the file gives.
    returns, start = data.returns(), 0
    for rollout in facts["rollouts"]:
        part = returns[start : start + rollout["episodes"]]
        assert np.isclose(part.mean(), rollout["mean_return"], rtol=1e-3)
        assert Name.parse(rollout["environment"]).family in ("bullet", "dmc")
        assert "return" in rollout["teacher_facts"]
        start += rollout["episodes"]
    assert (data.costs is None) == (not rollout["environment"].startswith("bullet"))
