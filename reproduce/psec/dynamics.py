"""Dynamics shift (the paper's §5.3): much data of a robot as it was, few of the robot as it is now."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from expertise.policy import CriticsConfig, RewardCriticConfig
from expertise.policy.baselines.direct import DirectConfig
from expertise.policy.data import DataConfig
from expertise.policy.learn import CriticsRecipe, DirectRecipe, PlainOptimizer
from expertise.policy.objective import Advantage
from reproduce.common.rows import Values
from reproduce.psec.bench import Bench
from reproduce.psec.sizes import Sizes

TABLE = "dynamics_shift"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One robot under one changed dynamics."""

    source: str
    """Data of the robot as it was."""
    target: str
    """Data of the robot as it is now."""
    environment: str
    """As it is now."""

    @property
    def before(self) -> str:
        """As it was."""
        return self.environment.partition("@")[0]


CASES = {
    "walker/gravity 1.5": Case(
        source="walker-nominal", target="walker-gravity-1.5", environment="dmc/walker-walk@gravity=1.5"
    ),
    "walker/mass 1.5": Case(
        source="walker-nominal", target="walker-mass-1.5", environment="dmc/walker-walk@mass=1.5"
    ),
    "cheetah/friction 2": Case(
        source="cheetah-nominal", target="cheetah-friction-2", environment="dmc/cheetah-run@friction=2"
    ),
}
"""Chosen by how far a teacher of the nominal dynamics falls, before any skill was learnt: cheetah 304 to 133
(`data/cheetah.toml` says what else was looked at); the rows `Base` say how far the policies fall."""
BEFORE = "Base, nominal dynamics"
"""What the base reaches where it learnt; how far it falls is the difference to `Base`."""
ORDER = ("PSEC", "Scratch", "Joint", "IQL", "Base", BEFORE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicsSizes(Sizes):
    """Of this scenario."""

    rank: int = 32
    """Of a skill (paper: 8). Chosen on seed 100, which no table has: with 8 a skill of the small network
    cannot follow changed dynamics, however fast or long it learns."""
    trajectories: int = 6
    """Of the target that are seen; others with each seed."""
    critic_steps: int = 5000
    """Of a critic of reward."""
    critic_rate: float = 1e-3
    """Its learning rate (release: 3e-4)."""
    temperature: float = 3.0
    """Of the weights by advantage (release, D4RL: 10)."""


SIZES = DynamicsSizes()


class Dynamics:
    """One case.

    Args:
        bench: of a seed.
        sizes: of the scenario.
        setting: its name.
    """

    def __init__(self, bench: Bench, sizes: DynamicsSizes, setting: str) -> None:
        self.bench, self.sizes, self.setting, self.case = bench, sizes, setting, CASES[setting]
        self.work = setting.replace("/", "-").replace(" ", "-")

    def measure(self) -> None:
        """Every row that is not there yet."""
        rows: dict[str, Callable[[], Values]] = {
            "PSEC": self._psec,
            "Scratch": lambda: self._outcome(
                self._policy("scratch", self.few, self.few_critics, self.sizes.scratch_steps)
            ),
            # As many steps as the base and the skill had together, on as much data.
            "Joint": lambda: self._outcome(
                self._policy(
                    "joint",
                    self.union,
                    self.union_critics,
                    self.sizes.base_steps + self.sizes.skill_steps,
                )
            ),
            "IQL": self._iql,
            "Base": lambda: self._outcome(self.base),
            BEFORE: lambda: self.bench.outcome(self.base, self.case.before),
        }
        for row, measured in rows.items():
            self.bench.once(TABLE, self.setting, row, measured, "return")

    @property
    def few(self) -> list[DataConfig]:
        """What is known of the robot as it is now."""
        return self.bench.few(self.case.target, self.sizes.trajectories)

    @property
    def union(self) -> list[DataConfig]:
        """All that is known."""
        return self.bench.data(self.case.source) + self.few

    @functools.cached_property
    def base(self) -> str:
        """A policy of the robot as it was, by what its actions were worth there."""
        source = self.bench.data(self.case.source)
        critics = self._critics(f"{self.case.source}-critics", source)
        return self.bench.policy(
            f"{self.case.source}-base",
            source,
            self.sizes.base_steps,
            weights=self._weights(),
            critics=critics,
        )

    @functools.cached_property
    def few_critics(self) -> str:
        """A critic of the target's data."""
        return self._critics(f"{self.work}/critics", self.few)

    @functools.cached_property
    def union_critics(self) -> str:
        """A critic of all data."""
        return self._critics(f"{self.work}/joint-critics", self.union)

    def _critics(self, name: str, data: list[DataConfig]) -> str:
        recipe = CriticsRecipe(
            data=data,
            critics=CriticsConfig(reward=RewardCriticConfig()),
            train=self.sizes.train(self.sizes.critic_steps, self.bench.seed),
            rewards="range",
            optimizer=PlainOptimizer(learning_rate=self.sizes.critic_rate),
        )
        return self.bench.learn(name, recipe)

    def _weights(self) -> Advantage.Config:
        return Advantage.Config(temperature=self.sizes.temperature)

    def _psec(self) -> Values:
        library = f"{self.work}/library"
        weights, critics = self._weights(), self.few_critics
        self.bench.skill(self.base, "target", self.few, library, weights=weights, critics=critics)
        policy = self.bench.composed(
            f"{self.work}/psec",
            self.base,
            self.few,
            skills=["target"],
            library=library,
            weights=weights,
            critics=critics,
        )
        return self._outcome(policy)

    def _policy(self, name: str, data: list[DataConfig], critics: str, steps: int) -> str:
        return self.bench.policy(
            f"{self.work}/{name}",
            data,
            steps,
            weights=self._weights(),
            critics=critics,
        )

    def _iql(self) -> Values:
        recipe = DirectRecipe(
            data=self.few,
            train=self.sizes.train(self.sizes.scratch_steps, self.bench.seed),
            policy=DirectConfig(),
            weights=self._weights(),
            critics=self.few_critics,
            optimizer=self.sizes.base_optimizer(),
        )
        return self._outcome(self.bench.learn(f"{self.work}/iql", recipe))

    def _outcome(self, policy: Any) -> Values:
        return self.bench.outcome(policy, self.case.environment)


def measure(bench: Bench) -> None:
    """Every case."""
    assert isinstance(bench.sizes, DynamicsSizes)
    for setting in CASES:
        Dynamics(bench, bench.sizes, setting).measure()
