"""Data that a recipe does not suit and policies that learnt nothing are warned of, with the key to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expertise.policy import load_critics
from expertise.policy.batch import Scale
from expertise.policy.learn import learn, recipe_of, result
from expertise.runs import recipe as recipes

TRAIN = {"steps": 200, "batch_size": 64, "device": "cpu", "threads": 1}
RATE = {"learning_rate": 3e-3}
NETWORK = {"name": "mlp", "hidden": 32, "num_layers": 2, "time_features": 8}


def recorded(
    path: Path, scale: list[float], *, reward: float = 0.1, length: int = 25, ends: str = "timeouts"
) -> list[dict[str, str]]:
    """Episodes whose actions follow from what is seen, each component of which has its own unit."""
    dice = np.random.default_rng(0)
    rows = 24 * length
    state = dice.normal(size=(rows, len(scale)))
    actions = np.stack([np.tanh(2 * state[:, 0]), np.tanh(2 * state[:, -1])], axis=1)
    last = np.arange(1, rows + 1) % length == 0
    none = np.zeros(rows, bool)
    seen = (state * scale).astype(np.float32)
    np.savez(
        path,
        observations=seen,
        actions=actions.astype(np.float32),
        rewards=np.full(rows, reward, np.float32),
        costs=np.zeros(rows, np.float32),
        next_observations=np.roll(seen, -1, axis=0),
        terminals=last if ends == "terminals" else none,
        timeouts=last if ends == "timeouts" else none,
    )
    return [{"path": str(path)}]


def said_by(run: Path, **fields: Any) -> list[str]:
    """The warnings of a training."""
    said: list[str] = []
    learn(recipe_of({"train": TRAIN, "optimizer": RATE, **fields}), run, said.append)
    return [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]


def base(data: list[dict[str, str]], *, normalize: bool = True, **fields: Any) -> dict[str, Any]:
    return {"kind": "policy", "data": data, "policy": {"network": NETWORK, "normalize": normalize}, **fields}


@pytest.mark.parametrize("scale", [[1000.0, 1000.0, 1000.0], [1e-4, 1e-4, 1e-4], [1000.0, 2e-3, 50.0]])
def test_observations_in_any_unit_are_learnt_with_normalisation_and_warned_of_without(
    scale: list[float], tmp_path: Path
) -> None:
    data = recorded(tmp_path / "own.npz", scale)
    assert said_by(tmp_path / "good", **base(data)) == []
    good = result(tmp_path / "good")["evaluation"]["noise_error"]
    # As well as in units of 1: nothing of what was seen is lost.
    assert said_by(tmp_path / "unit", **base(recorded(tmp_path / "unit.npz", [1.0] * 3))) == []
    assert good == pytest.approx(result(tmp_path / "unit")["evaluation"]["noise_error"], rel=0.1)

    first, *_ = said_by(tmp_path / "raw", **base(data, normalize=False))
    assert "far from unit scale" in first
    assert "component 0 is about" in first
    assert "policy.normalize = true" in first
    raw = result(tmp_path / "raw")["evaluation"]["noise_error"]
    assert raw > 1.2 * good, "the input is one that needs the warning"
    direct = {"kind": "direct", "data": data, "policy": {"hidden": [8], "normalize": False}}
    assert "policy.normalize = true" in said_by(tmp_path / "direct", **direct)[0]
    critics = {"kind": "critics", "data": data, "critics": {"reward": {"hidden": [8]}, "normalize": False}}
    assert "critics.normalize = true" in said_by(tmp_path / "critics", **critics)[0]


def test_a_component_that_normalisation_leaves_small_is_named(tmp_path: Path) -> None:
    data = recorded(tmp_path / "own.npz", [1.0, 1.0, 1e-4])
    (line,) = said_by(tmp_path / "run", **base(data))
    assert "component 2 by 0.0001" in line
    assert "smaller units" in line


def test_what_is_constant_but_for_rounding_is_not_warned_of(tmp_path: Path) -> None:
    data = recorded(tmp_path / "own.npz", [1.0, 0.0, 1e-12])
    for normalize in (True, False):
        assert said_by(tmp_path / f"run-{normalize}", **base(data, normalize=normalize)) == []


def test_normalisation_of_small_observations() -> None:
    dice = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 3, generator=dice)
    for unit in (torch.tensor([1e-4, 1e-4, 2e-6]), torch.tensor([1000.0, 1.0, 1e-2])):
        scale = Scale(3)
        scale.fit(rows * unit)
        assert torch.allclose(scale(rows * unit).std(0, correction=0), torch.ones(3), atol=1e-3)
    scale = Scale(3)
    scale.fit(rows * torch.tensor([1.0, 1e-5, 0.0]) + torch.tensor([0.0, 0.5, 0.5]))
    assert scale.std[1:].tolist() == [1.0, 1.0], "what hardly varies among others stays as it is"
    scale.fit(torch.full((500, 3), 0.3) + rows * 1e-8)
    assert scale.std.tolist() == [1.0] * 3, "rounding is not stretched"


def test_a_skill_on_data_in_other_units_than_its_base(tmp_path: Path) -> None:
    unit, large = (recorded(tmp_path / f"{scale}.npz", [scale] * 3) for scale in (1.0, 1000.0))
    quick = {**TRAIN, "steps": 20}
    skill = {"kind": "skill", "library": str(tmp_path / "skills"), "train": quick}
    for normalize, word in (
        (True, "units that the base was learnt with"),
        (False, "policy.normalize = true"),
    ):
        run, name = tmp_path / f"base-{normalize}", f"x{normalize}"
        said_by(run, **base(unit, normalize=normalize))
        assert said_by(tmp_path / name, **skill, base=str(run), name=name, data=unit) == []
        first = said_by(tmp_path / f"{name}-far", **skill, base=str(run), name=f"{name}-far", data=large)[0]
        assert "far from unit scale" in first
        assert word in first
        compose = {
            "kind": "composition",
            "base": str(run),
            "library": str(tmp_path / "skills"),
            "train": quick,
        }
        far = said_by(tmp_path / f"both-{normalize}", **compose, skills=[name], data=large)[0]
        assert word in far


def test_timeouts_that_end_a_task_that_goes_on(tmp_path: Path) -> None:
    critics = {
        "kind": "critics",
        "critics": {"reward": {"hidden": [32], "discount": 0.9, "target_rate": 0.1}},
    }
    train = {"train": {**TRAIN, "steps": 400}}
    going_on = recorded(tmp_path / "on.npz", [1.0] * 3, reward=1.0, length=10)
    (line,) = said_by(tmp_path / "cut", **critics, data=going_on, timeouts_end=True, **train)
    assert "24 of 24 trajectories" in line
    assert "set timeouts_end = false" in line
    assert said_by(tmp_path / "on", **critics, data=going_on, **train) == []
    values = {name: result(tmp_path / name)["evaluation"]["reward"]["v"] for name in ("cut", "on")}
    assert values["on"] == pytest.approx(10.0, abs=1.0)
    assert values["cut"] < 8
    ended = recorded(tmp_path / "end.npz", [1.0] * 3, length=10, ends="terminals")
    assert said_by(tmp_path / "end", **critics, data=ended, timeouts_end=True) == []


def test_a_policy_that_is_worse_than_nothing_is_said_to_be(tmp_path: Path) -> None:
    data = recorded(tmp_path / "own.npz", [1.0] * 3)
    wild = {"learning_rate": 30.0, "schedule": "constant"}
    (line,) = said_by(tmp_path / "wild", **base(data), optimizer=wild)
    assert "above that of predicting nothing (1.9" in line
    assert "optimizer.learning_rate" in line
    assert said_by(tmp_path / "wild", **base(data), optimizer=wild) == [line], "a finished run says it again"
    last = said_by(tmp_path / "raw", **base(recorded(tmp_path / "far.npz", [1e5] * 3), normalize=False))[-1]
    assert "predicting nothing" in last
    assert "policy.normalize = true" in last
    direct = {"kind": "direct", "data": data, "policy": {"hidden": [16]}}
    assert said_by(tmp_path / "direct", **direct) == []
    assert "predicting nothing" in said_by(tmp_path / "wilder", **direct, optimizer=wild)[-1]


def test_the_shipped_recipes_for_own_data_suit_them(tmp_path: Path) -> None:
    values = {
        name: recipes.parse(text, name)
        for name, text in recipes.shipped().items()
        if name.startswith("policy-own-")
    }
    assert len(values) == 5
    critics, policy = values["policy-own-critics"], values["policy-own-base"]
    assert critics["timeouts_end"] is False
    for recipe in values.values():
        assert recipe["data"] == [], "data of one's own are given"
        assert recipe["train"]["steps"] * recipe["train"]["batch_size"] <= 800_000, "minutes on a CPU"
    data = recorded(tmp_path / "own.npz", [1000.0, 2e-3, 50.0], reward=1.0)
    train = {**policy["train"], "steps": 200}
    assert said_by(tmp_path / "base", **{**policy, "data": data, "train": train}) == []
    assert result(tmp_path / "base")["evaluation"]["noise_error"] < 1.0
    short = {**critics, "data": data, "rewards": "plain", "train": {**critics["train"], "steps": 50}}
    assert said_by(tmp_path / "critics", **short) == []
    assert load_critics(tmp_path / "critics").reward is not None


@pytest.mark.parametrize("name", ["base", "critics", "reward", "safety", "compose"])
def test_a_table_of_data_in_place_of_the_line_without_any(name: str) -> None:
    text = recipes.shipped()[f"policy-own-{name}"]
    (line,) = [line for line in text.splitlines() if line.startswith("data = []")]
    filled = text.replace(line, '[[data]]\npath = "mine.npz"\naction_low = -2.0\naction_high = 2.0')
    recipe = recipe_of(recipes.parse(filled, name))
    assert [(source.path, source.action_high) for source in recipe.data] == [("mine.npz", 2.0)]  # type: ignore[attr-defined]
