"""Data in other layouts, by commands: what is said, and what can be set."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
RECIPE = """
kind = "policy"
policy.network = {name = "mlp", hidden = 16, num_layers = 2, time_features = 4}
[train]
steps = 2
batch_size = 16
threads = 1
device = "cpu"
"""


@pytest.fixture
def place(tmp_path: Path, write_demonstrations: Callable[..., Path]) -> Path:
    """A folder with a recipe and data with costs and without next observations, whose ending says nothing."""
    (tmp_path / "base.toml").write_text(RECIPE)
    with np.load(write_demonstrations("left")) as file:
        rows = {key: array for key, array in file.items() if key != "next_observations"}
    rows["actions"] *= 0.4
    np.savez(tmp_path / "plain.npz", **rows)
    (tmp_path / "plain.npz").rename(tmp_path / "plain.data")
    return tmp_path


def test_a_layout_can_be_named(place: Path, expertise: Command) -> None:
    learn = ("policy", "learn", "base.toml", "--data", "plain.data")
    done = expertise(*learn)
    assert done.returncode == 2
    assert "layout" in done.stderr
    done = expertise(*learn, "--layout", "npz")
    assert done.returncode == 0, done.stderr
    assert "no next observations in plain.data" in done.stderr
    assert "declares no bounds" in done.stderr
    done = expertise(*learn, "--layout", "nzp", "--run", "runs/other")
    assert done.returncode == 2
    assert "did you mean 'npz'?" in done.stderr
    done = expertise("policy", "learn", "base.toml", "--layout", "npz")
    assert done.returncode == 2
    assert "--data" in done.stderr
    done = expertise(
        "policy", "compose", "--base", "runs/base", "--weights", "1", "--layout", "npz", "--run", "x"
    )
    assert done.returncode == 2
    assert "--data" in done.stderr


def test_bounds_are_keys_of_a_table(place: Path, expertise: Command) -> None:
    table = '{path = "plain.data", layout = "npz", action_low = -0.4, action_high = [0.4, 0.4]}'
    done = expertise("policy", "learn", "base.toml", "--set", f"data=[{table}]")
    assert done.returncode == 0, done.stderr
    assert "bounds" not in done.stderr
    table = '{path = "plain.data", layout = "npz", action_low = 0.4, action_high = -0.4}'
    done = expertise("policy", "learn", "base.toml", "--set", f"data=[{table}]", "--run", "runs/other")
    assert done.returncode == 2
    assert "action_low must be below action_high" in done.stderr
    assert "Traceback" not in done.stderr
