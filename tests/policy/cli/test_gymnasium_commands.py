"""`expertise policy collect`, `learn` and `evaluate` with environments that only Gymnasium knows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from expertise.policy.data import read

pytest.importorskip("gymnasium", reason="`make setup-policy` installs it")
pytest.importorskip("h5py", reason="`make setup-policy` installs it")

Command = Callable[..., subprocess.CompletedProcess[str]]

ENVIRONMENTS = """
import gymnasium


class Costly(gymnasium.Wrapper):
    def step(self, action):
        *rest, info = self.env.step(action)
        return (*rest, {**info, "cost": float(abs(action[0]) > 1)})


def make():
    return Costly(gymnasium.make("Pendulum-v1", max_episode_steps=20))
"""
NETWORK = "{name = 'mlp', hidden = 8, num_layers = 1, time_features = 4}"
QUICK = ("--device", "cpu", "--set", "train.steps=2", "--set", "train.batch_size=8")


def fine(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def test_a_random_policy_recorded_cloned_and_evaluated(
    expertise: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(ENVIRONMENTS)
    collect = ("policy", "collect", "--environment", "mine:make", "--episodes", "3", "--out", "recorded")
    done = fine(expertise(*collect))
    assert 'costs are info["cost"]' in done.stderr
    data = read("recorded/make.hdf5")
    assert (len(data), int(data.timeouts.sum()), int(data.terminals.sum())) == (60, 3, 0)
    assert data.costs is not None
    assert 0 < data.costs.mean() < 1
    first = (tmp_path / "recorded/make.hdf5").read_bytes()
    assert "3 episodes of random" not in fine(expertise(*collect)).stderr  # kept
    fine(expertise(*collect[:-1], "again"))
    assert (tmp_path / "again/make.hdf5").read_bytes() == first
    (tmp_path / "mine.py").write_text(ENVIRONMENTS.replace("=20", "=10"))
    assert "3 episodes of random" in fine(expertise(*collect)).stderr  # another environment

    learn = ("policy", "learn", "policy-own-base", "--data", "again/make.hdf5", *QUICK)
    learn += ("--set", f"policy.network={NETWORK}", "--run", "runs/clone")
    assert "assumed" not in fine(expertise(*learn, "--environment", "mine:make")).stderr
    act = ("policy", "evaluate", "runs/clone", "--episodes", "2", "--environment")
    found = json.loads(fine(expertise(*act, "mine:make", "--json")).stdout)
    assert "mine:make" in json.dumps(found)
    assert "cost" in json.dumps(found)
    fine(expertise(*act, "Pendulum-v1@repeat=10"))
    for name, message in (
        ("CartPole-v1", "error: CartPole-v1 has actions of Discrete"),
        (
            "MountainCarContinuous-v0",
            "error: MountainCarContinuous-v0 has observations and actions of widths",
        ),
        ("mine:made", "error: 'mine:made': mine has no 'made'"),
    ):
        done = expertise(*act, name)
        assert done.returncode == 2
        assert message in done.stderr


def test_what_goes_with_what(expertise: Command) -> None:
    for arguments, message in (
        (("collect", "--out", "x"), "give a recipe or --environment"),
        (("collect", "policy-collect", "--environment", "Pendulum-v1", "--out", "x"), "one of the two"),
        (("collect", "policy-collect", "--episodes", "3", "--out", "x"), "go with --environment"),
        (("collect", "--environment", "CartPole-v1", "--out", "x"), "actions of Discrete"),
        (
            ("learn", "policy-own-base", "--environment", "Pendulum-v1"),
            "--environment says something of --data",
        ),
    ):
        done = expertise("policy", *arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
    assert not Path("x/recipe.toml").exists()
