"""Multi-objective control (the paper's §5.1): alpha(s) over a reward skill and a safety skill on one base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from expertise.policy import CriticsConfig, RewardCriticConfig, SafetyCriticConfig, load
from expertise.policy.alpha import ContextAlpha, FixedAlpha, TopPAlpha
from expertise.policy.data import DataConfig
from expertise.policy.data.scores import normalized_cost
from expertise.policy.learn import CriticsRecipe, PlainOptimizer
from expertise.policy.objective import Advantage, Safety
from reproduce.psec.bench import LEVELS, Bench, Values
from reproduce.psec.sizes import Sizes

TASKS = ("BallRun", "CarRun", "BallCircle", "DroneRun")
"""Named before the runs."""
TABLES = {"multi_objective": 5.0, "multi_objective_limit_10": 10.0}
"""Table → cost of an episode that counts as 1: the issue's main setting, and the release's."""
REWARD, SAFETY = "reward", "safety"
"""Skills."""
PSEC, BASE = "PSEC", "BC"
ORDER = (PSEC, "reward skill", "safety skill", "fixed weights", BASE, "NSEC", "ASEC", "PSEC, top-p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafeSizes(Sizes):
    """Of this scenario."""

    base_steps: int = 3000
    skill_steps: int = 1500
    episodes: int = 20
    critic_steps: int = 2000
    """Of all critics at once."""
    critic_rate: float = 1e-3
    """Their learning rate (release: 3e-4)."""
    candidates: int = 1
    """Actions drawn for each state (release: 1, 8 or 16), in all rows. With 16 and `pick` "min-qc" every row
    of BallRun is safe, the base too: there the critic acts, not the composition."""
    pick: str = "first"
    """Which of them is taken (release: "min-qc"), in all rows."""
    reward_temperature: float = 3.0
    """Of the reward skill's weights (release: 1 in its launcher, 3 in its class)."""
    safety_temperature: float = 1.0
    """Of the safety skill's weights (release: 1)."""
    target_cost: float = 5.0
    """Trajectories of the target cost no more."""
    target_trajectories: int = 20
    """So many of those, with the greatest returns."""


SIZES = SafeSizes()


class Safe:
    """One task.

    Args:
        bench: of a seed.
        sizes: of the scenario.
        task: of Bullet-Safety-Gym.
    """

    def __init__(self, bench: Bench, sizes: SafeSizes, task: str) -> None:
        self.bench, self.sizes, self.task = bench, sizes, task

    def measure(self) -> None:
        """Every row that is not there yet."""
        both = [REWARD, SAFETY]
        self._once(PSEC, self._psec)
        self._once("reward skill", lambda: self._fixed("alone-reward", [1.0, 0.0]))
        self._once("safety skill", lambda: self._fixed("alone-safety", [0.0, 1.0]))
        self._once("fixed weights", self._constant)
        self._once(BASE, lambda: self._outcome(self.base))
        # As the release does: the base with the one skill, and with the other.
        for row, level in LEVELS.items():
            self._once(row, functools.partial(self._composed, row, level=level, with_base=False, skills=both))
        self._once("PSEC, top-p", lambda: self._composed("top-p", alpha=TopPAlpha.Config()))

    @functools.cached_property
    def critics(self) -> str:
        """Critics of reward and of safety."""
        config = CriticsConfig(reward=RewardCriticConfig(), safety=SafetyCriticConfig())
        recipe = CriticsRecipe(
            data=self.bench.data(self.task),
            critics=config,
            train=self.sizes.train(self.sizes.critic_steps, self.bench.seed),
            rewards="range",
            timeouts_end=True,
            optimizer=PlainOptimizer(learning_rate=self.sizes.critic_rate),
        )
        return self.bench.learn(f"{self.task}/critics", recipe)

    @functools.cached_property
    def base(self) -> str:
        """All data, cloned; it has the critics."""
        return self.bench.policy(
            f"{self.task}/base",
            self.bench.data(self.task),
            self.sizes.base_steps,
            critics=self.critics,
            num_candidates=self.sizes.candidates,
            pick=self.sizes.pick,
        )

    @functools.cached_property
    def skills(self) -> str:
        """A library with both skills; its folder's name."""
        library, data = f"{self.task}/library", self.bench.data(self.task)
        reward = Advantage.Config(temperature=self.sizes.reward_temperature)
        safety = Safety.Config(temperature=self.sizes.safety_temperature)
        for name, weights in ((REWARD, reward), (SAFETY, safety)):
            self.bench.skill(self.base, name, data, library, weights=weights, critics=self.critics)
        return library

    @functools.cached_property
    def target(self) -> list[DataConfig]:
        """The few trajectories that alpha learns from: cheap ones, with the greatest returns."""
        (source,) = self.bench.data(self.task, max_cost=self.sizes.target_cost)
        returns = np.sort(source.read().returns())[::-1]
        least = float(returns[min(len(returns), self.sizes.target_trajectories) - 1])
        return [dataclasses.replace(source, min_return=least)]

    def _psec(self) -> Values:
        return self._composed("psec")

    def _composed(self, name: str, **changes: Any) -> Values:
        values: dict[str, Any] = {"skills": [REWARD, SAFETY], "library": self.skills}
        policy = self.bench.composed(
            f"{self.task}/composed/{name}",
            self.base,
            self.target,
            critics=self.critics,
            **{"alpha": ContextAlpha.Config(), **values, **changes},
        )
        return self._outcome(policy)

    def _fixed(self, name: str, values: list[float]) -> Values:
        return self._composed(name, alpha=FixedAlpha.Config(values=values))

    def _constant(self) -> Values:
        """The constant weights that suit the target's data best."""
        return self._composed("constant", alpha=FixedAlpha.Config(learn=True))

    def _outcome(self, policy: Any) -> Values:
        acts = load(policy) if isinstance(policy, str) else policy
        acts.num_candidates, acts.pick = self.sizes.candidates, self.sizes.pick
        return self.bench.outcome(acts, f"bullet/{self.task}", cost_limit=TABLES["multi_objective"])

    def _once(self, row: str, measure: Callable[[], Values]) -> None:
        main, *others = TABLES
        if self.bench.results.has(main, self.task, row, "normalized_cost", self.bench.seed):
            return
        found = measure()
        for table in others:
            cost = normalized_cost(found["cost"], TABLES[table])
            self.bench.keep(table, self.task, row, {**found, "normalized_cost": cost})
        self.bench.keep(main, self.task, row, found)


def measure(bench: Bench) -> None:
    """Every task."""
    for task in TASKS:
        assert isinstance(bench.sizes, SafeSizes)
        Safe(bench, bench.sizes, task).measure()
