"""Data as people have them: what is said about them, what can be set, and that they may lie elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import DataError, RecipeError, RunError, SkillError
from expertise.policy import load_critics
from expertise.policy.data import DataConfig
from expertise.policy.learn import learn, recipe_of
from expertise.policy.learn.common import read_all
from expertise.runs import recipe as recipes
from expertise.skills.library import Library

Write = Callable[..., Path]
WRITTEN_BEFORE = Path(__file__).parents[2] / "written_before" / "files"
TRAIN = {"steps": 2, "batch_size": 16, "device": "cpu", "threads": 1}
NETWORK = {"network": {"name": "mlp", "hidden": 16, "num_layers": 2, "time_features": 4}}


@pytest.fixture
def made(tmp_path: Path, write_demonstrations: Write) -> Path:
    """A folder with data, a base and a skill."""
    write_demonstrations("left")
    for kind in ("base", "skill"):
        train(tmp_path, kind)
    return tmp_path


def values(folder: Path, run: str, **fields: Any) -> dict[str, Any]:
    if run == "base":
        own: dict[str, Any] = {"kind": "policy", "policy": NETWORK}
    else:
        own = {"kind": "skill", "name": "go", "base": f"{folder}/base", "library": f"{folder}/skills"}
    return {"data": [{"path": f"{folder}/left.npz"}], "train": TRAIN, **own, **fields}


def train(folder: Path, run: str, **fields: Any) -> list[str]:
    said: list[str] = []
    learn(recipe_of(values(folder, run, **fields)), folder / run, said.append)
    return said


def change(path: Path, **arrays: Any) -> None:
    """Replace arrays of a file; None takes one out."""
    with np.load(path) as file:
        merged = {**file, **arrays}
    np.savez(path, **{key: value for key, value in merged.items() if value is not None})


def test_notes_reach_whoever_learns(made: Path) -> None:
    said = train(made, "base")
    (line,) = [line for line in said if "bounds" in line]
    assert line.startswith("note:")
    assert "action_low and action_high" in line
    assert any("transitions in" in line for line in said)


def test_data_that_lie_elsewhere_are_the_same_data(made: Path) -> None:
    (made / "moved").mkdir()
    shutil.move(made / "left.npz", made / "moved" / "data.npz")
    moved = [{"path": f"{made}/moved/data.npz"}]
    shutil.copytree(made / "base", made / "moved" / "base")
    for kind, fields in (("base", {}), ("skill", {"base": f"{made}/moved/base"})):
        train(made, kind, data=moved, **fields)
    # A new run of the same recipe: the skill that is there is its own.
    train(made, "skill", data=moved)
    shutil.rmtree(made / "skill")
    train(made, "skill", data=moved)
    # Keys that change nothing in the data may change, too.
    train(made, "base", data=[{**moved[0], "action_low": -1.0, "action_high": 1.0}])
    with pytest.raises(RunError, match=r"data of .* changed since it was made"):
        train(made, "base", data=[{**moved[0], "trajectories": 2}])
    with pytest.raises(RunError, match=r"data of .* changed since it was made"):
        train(made, "base", data=[{**moved[0], "action_low": -2.0, "action_high": 2.0}])
    shutil.rmtree(made / "skill")
    with pytest.raises(SkillError, match="that another recipe made, or other data"):
        train(made, "skill", data=[{**moved[0], "action_low": -2.0, "action_high": 2.0}])


def test_another_base_in_another_place_is_another_base(made: Path) -> None:
    other = recipe_of(values(made, "base", train={**TRAIN, "seed": 1}))
    learn(other, made / "other", print)
    Library(made / "skills").remove("go")
    with pytest.raises(RunError, match=r"base of .* changed since it was made"):
        train(made, "skill", base=f"{made}/other")


@pytest.mark.parametrize("run", ["base", "critics", "skill-reward", "composed-context"])
def test_runs_of_the_version_before_go_on_also_with_moved_data(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    shutil.copytree(WRITTEN_BEFORE, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    told = recipes.parse(Path(run, "recipe.toml").read_text(), run)
    learn(recipe_of(told), Path(run), print)
    Path("few.hdf5").rename("moved.hdf5")
    for table in told["data"]:
        table["path"] = "moved.hdf5"
    learn(recipe_of(told), Path(run), print)
    if run.startswith("skill"):
        learn(recipe_of(told), Path("again"), print)  # its skill is in the library
    for table in told["data"]:  # other numbers are other data
        table |= {"action_low": -2.0, "action_high": 2.0}
    with pytest.raises((RunError, SkillError), match=r"changed since it was made|or other data"):
        learn(recipe_of(told), Path(run), print)


def test_critics_of_data_without_costs(made: Path) -> None:
    change(made / "left.npz", costs=None)
    both = {"reward": {"hidden": [8]}, "safety": {"hidden": [8]}}
    recipe = {"kind": "critics", "data": [{"path": f"{made}/left.npz"}], "train": TRAIN, "critics": both}
    with pytest.raises(DataError, match="need costs") as caught:
        learn(recipe_of(recipe), made / "critics", print)
    assert "critics.safety.enabled = false" in caught.value.hints[0]
    both["safety"]["enabled"] = False
    for _ in range(2):  # the second goes on with the first
        learn(recipe_of(recipe), made / "critics", print)
    critics = load_critics(made / "critics")
    assert list(critics.each()) == ["reward"]
    both["reward"]["enabled"] = False
    with pytest.raises(RecipeError, match=r"critics\.reward"):
        recipe_of(recipe)
    picking = values(made, "base", policy={**NETWORK, "pick": "min-qc"}, critics=f"{made}/critics")
    with pytest.raises(RecipeError, match="a critic of safety is needed") as other:
        learn(recipe_of(picking), made / "new", print)
    assert any('"first"' in hint for hint in other.value.hints)


def test_costs_that_are_dropped_are_said(made: Path, write_demonstrations: Write) -> None:
    other = write_demonstrations("right")
    change(made / "left.npz", costs=None)
    sources = [DataConfig(path=f"{made}/left.npz"), DataConfig(path=str(other))]
    data = read_all(sources)
    assert data.costs is None
    (note,) = [note for note in data.notes if "costs are left out" in note]
    assert "left.npz has none" in note
    assert not any("costs are left out" in note for note in read_all(sources[1:]).notes)
