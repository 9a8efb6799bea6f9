"""Multi-objective control (the paper's §5.1): alpha(s) over a reward skill and a safety skill on one base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from expertise.policy import CriticsConfig, Policy, RewardCriticConfig, SafetyCriticConfig, load
from expertise.policy.alpha import ALPHA
from expertise.policy.data import DataConfig
from expertise.policy.data.scores import normalized_cost
from expertise.policy.learn import CriticsRecipe, PlainOptimizer
from expertise.policy.objective import Advantage, Safety
from reproduce.psec import shown
from reproduce.psec.bench import LEVELS, Bench
from reproduce.psec.sizes import Sizes

TASKS = ("BallRun", "CarRun", "BallCircle", "DroneRun")
"""Named before the runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How the same policies act and are judged."""

    limit: float
    """Cost of an episode that counts as 1 (release: 10)."""
    candidates: int
    """Actions drawn for each state (release: 1, 8 or 16)."""
    pick: str
    """Which of them is taken (release: "min-qc")."""


TABLES = {
    "multi_objective": Reading(limit=5.0, candidates=2, pick="min-qc"),
    "multi_objective_limit_10": Reading(limit=10.0, candidates=2, pick="min-qc"),
    "multi_objective_one_action": Reading(limit=5.0, candidates=1, pick="first"),
}
"""Table → reading, the same in all rows. The main number was chosen among 1, 2, 4 and 8 on seeds that no
table has; with one action it is alpha alone that keeps a policy safe, and no critic."""
SHOWN = "BallCircle"
"""Task of which the page shows an episode: its map says most."""
REWARD, SAFETY = "reward", "safety"
"""Skills."""
PSEC, BASE = "PSEC", "BC"
ORDER = (PSEC, "reward skill", "safety skill", "fixed weights", BASE, "NSEC", "ASEC", "PSEC, top-p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SafeSizes(Sizes):
    """Of this scenario."""

    base_steps: int = 3000
    skill_steps: int = 1500
    skill_rate: float = 1e-3
    alpha_steps: int = 1000
    action_steps: int = 1000
    critic_steps: int = 2000
    """Of all critics at once."""
    critic_rate: float = 1e-3
    """Their learning rate (release: 3e-4)."""
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
        self._once(PSEC, lambda: self._composed("psec"))
        self._once("reward skill", lambda: self._fixed("alone-reward", [1.0, 0.0]))
        self._once("safety skill", lambda: self._fixed("alone-safety", [0.0, 1.0]))
        # The constant weights that suit the target's data best.
        self._once(
            "fixed weights", lambda: self._composed("constant", alpha=ALPHA.config("fixed", learn=True))
        )
        self._once(BASE, lambda: load(self.base))
        # As the release does: the base with the one skill, and with the other.
        for row, level in LEVELS.items():
            self._once(row, functools.partial(self._composed, row, level=level, with_base=False))
        self._once("PSEC, top-p", lambda: self._composed("top-p", alpha=ALPHA.config("top_p")))

    def show(self) -> None:
        """Keep an episode for the page, as the main table has it."""
        if shown.path_of(self.bench.results.path).exists():
            return
        policy, main = self._composed("psec"), next(iter(TABLES.values()))
        episodes = self.bench.episodes(
            policy,
            f"bullet/{self.task}",
            num_candidates=main.candidates,
            pick=main.pick,
            cost_limit=main.limit,
            traces=1,
            film_every=shown.FILM_EVERY,
        )
        name = f"{PSEC} in {self.task}, seed {self.bench.seed}"
        shown.keep(self.bench.results.path, name, policy, episodes)

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

    def _composed(self, name: str, **changes: Any) -> Policy:
        values: dict[str, Any] = {"alpha": ALPHA.config()} | changes
        return self.bench.composed(
            f"{self.task}/composed/{name}",
            self.base,
            self.target,
            critics=self.critics,
            skills=[REWARD, SAFETY],
            library=self.skills,
            **values,
        )

    def _fixed(self, name: str, values: list[float]) -> Policy:
        return self._composed(name, alpha=ALPHA.config("fixed", values=values))

    def _once(self, row: str, make: Callable[[], Policy]) -> None:
        missing = [
            table
            for table in TABLES
            if not self.bench.results.has(table, self.task, row, "normalized_cost", self.bench.seed)
        ]
        if not missing:
            return
        policy, found = make(), {}
        for table in missing:
            reading = TABLES[table]
            acting = reading.candidates, reading.pick
            if acting not in found:
                changes = {"num_candidates": reading.candidates, "pick": reading.pick}
                found[acting] = self.bench.outcome(policy, f"bullet/{self.task}", **changes)
            values = found[acting]
            cost = normalized_cost(values["cost"], reading.limit)
            self.bench.keep(table, self.task, row, {**values, "normalized_cost": cost})


def measure(bench: Bench) -> None:
    """Every task."""
    for task in TASKS:
        assert isinstance(bench.sizes, SafeSizes)
        safe = Safe(bench, bench.sizes, task)
        safe.measure()
        if task == SHOWN:
            safe.show()
