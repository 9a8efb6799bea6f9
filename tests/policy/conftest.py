"""Small policies and critics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expertise.mixture import ROUTERS
from expertise.policy import (
    Critics,
    CriticsConfig,
    DiffusionPolicy,
    PolicyConfig,
    RewardCriticConfig,
    SafetyCriticConfig,
)
from expertise.policy.alpha import ALPHA
from expertise.policy.envs import FAMILIES
from expertise.policy.envs.simulator import Family, Outcome, Simulator
from expertise.policy.network import PlainNetwork
from expertise.skills.learn import SkillConfig, fresh
from expertise.skills.skill import Skill

SMALL = PlainNetwork.Config(hidden=16, num_layers=2, time_features=4)


@pytest.fixture
def make_policy() -> Callable[..., DiffusionPolicy]:
    """`make_policy(…)`: a policy for observations of width 3 and actions of width 2; fields of its config."""

    def make(**fields: object) -> DiffusionPolicy:
        torch.manual_seed(0)
        return PolicyConfig(**{"network": SMALL, **fields}).build(3, 2)  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_critics() -> Callable[..., Critics]:
    """`make_critics("reward", …)`: critics with random weights that tell actions apart."""

    def make(*names: str) -> Critics:
        torch.manual_seed(1)
        config = CriticsConfig(
            reward=RewardCriticConfig(hidden=[16]) if "reward" in names else None,
            safety=SafetyCriticConfig(hidden=[16]) if "safety" in names else None,
        )
        critics = Critics(config, 3, 2)
        for module in critics.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.bias)
        return critics

    return make


@pytest.fixture
def make_skill(make_policy: Callable[..., DiffusionPolicy]) -> Callable[..., Skill]:
    """`make_skill("name", rank)`: a skill that changes every layer of the small policy."""

    def make(name: str, rank: int = 2) -> Skill:
        seed = sum(name.encode())
        config = SkillConfig(rank=rank, alpha=2.0, scale_convention="raw")
        skill = fresh(make_policy().acting, name, config, seed)
        dice = torch.Generator().manual_seed(seed)
        factors = {
            address: dataclasses.replace(f, B=torch.randn(f.B.shape, generator=dice) * 0.2)
            for address, f in skill.factors.items()
        }
        return dataclasses.replace(skill, factors=factors)

    return make


@pytest.fixture
def weigher() -> Callable[[str], Any]:
    """`weigher("top_k")`: the config of a router as alpha, with the defaults of policies."""

    def make(name: str) -> Any:
        kinds = dataclasses.fields(ROUTERS[name].Config)
        needed = [f.name for f in kinds if f.default is f.default_factory is dataclasses.MISSING]
        missing = set(needed) - set(ALPHA.preset.get(name, {}))
        return ALPHA.config(name, **dict.fromkeys(missing, 1))

    return make


class PointMass(Simulator):
    """A point on the plane is pushed towards a goal; to the right of 0.5 each step costs 1."""

    has_cost = True
    has_success = True
    observation_dim = 3
    max_steps = 40
    action_low, action_high = np.full(2, -1.0), np.full(2, 1.0)

    def __init__(self, task: str) -> None:
        self.goal = np.array({"left": (-0.6, 0.4), "right": (0.8, 0.4), "fall": (0.0, -2.0)}[task])
        self.closed = False

    def reset(self, seed: int) -> Any:
        self.place = np.random.default_rng(seed).uniform(-0.9, 0.4, 2)
        return self._seen()

    def step(self, action: Any) -> Outcome:
        self.place = self.place + 0.1 * action
        away = float(np.linalg.norm(self.place - self.goal))
        cost, fell = float(self.place[0] > 0.5), bool(self.place[1] < -1.2)
        return Outcome(self._seen(), -away, cost, fell, away < 0.15)

    def frame(self, width: int, height: int) -> Any:
        return np.full((height, width, 3), 100, np.uint8)

    def position(self) -> tuple[float, float]:
        return float(self.place[0]), float(self.place[1])

    def close(self) -> None:
        self.closed = True

    def _seen(self) -> Any:
        return np.array([*self.place, 1.0])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[PointMass]:
    """The family `toy` of environments: `toy/left`, `toy/right`, `toy/fall`."""
    family = Family(tasks=lambda: ["left", "right", "fall"], build=PointMass)
    monkeypatch.setitem(FAMILIES._table, "toy", "")
    monkeypatch.setitem(FAMILIES._loaded, "toy", family)
    return PointMass


@pytest.fixture
def write_demonstrations(tmp_path: Path) -> Callable[..., Path]:
    """`write_demonstrations(task, …)`: a file with episodes of the toy, pushed straight to the goal."""

    def write(task: str, trajectories: int = 6, name: str = "", reach: float = 1.0) -> Path:
        simulator, dice = PointMass(task), np.random.default_rng(len(task))
        rows: dict[str, list[Any]] = {}
        for number in range(trajectories):
            seen = simulator.reset(1000 + number)
            for step in range(simulator.max_steps):
                push = 3 * reach * (simulator.goal - simulator.place) + dice.normal(0, 0.1, 2)
                action = np.clip(push, -1, 1)
                outcome = simulator.step(action)
                row = {
                    "observations": seen,
                    "actions": action,
                    "rewards": outcome.reward,
                    "costs": outcome.cost,
                    "next_observations": outcome.observation,
                    "terminals": outcome.terminated,
                    "timeouts": step == simulator.max_steps - 1,
                }
                for key, value in row.items():
                    rows.setdefault(key, []).append(value)
                seen = outcome.observation
                if outcome.terminated:
                    break
        booleans = {"terminals", "timeouts"}
        arrays = {k: np.array(v, bool if k in booleans else np.float32) for k, v in rows.items()}
        path = tmp_path / f"{name or task}.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture(autouse=True)
def _threads(same_threads: None) -> None:
    """No test here leaves another number of threads behind."""
