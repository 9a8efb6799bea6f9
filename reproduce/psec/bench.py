"""One seed of a scenario: what is trained when a row first needs it, episodes, and rows that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expertise.mixture.routers.configs import RouterConfig
from expertise.policy import Policy, load
from expertise.policy.alpha import ALPHA
from expertise.policy.data import DataConfig
from expertise.policy.data.shipped import PREFIX
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.evaluation import Evaluation
from expertise.policy.growing import FullConfig, GrowthConfig
from expertise.policy.learn import CompositionRecipe, LearnRecipe, PolicyRecipe, SkillRecipe, learn
from expertise.policy.objective import Uniform, Weights
from expertise.policy.policy import PolicyConfig
from expertise.runs.results import Results, Row
from reproduce.psec.sizes import Sizes

DATA = Path(__file__).parent / "data"
"""What teachers recorded."""
UNITS = {
    "return": "reward",
    "cost": "cost",
    "normalized_reward": "1",
    "normalized_cost": "1",
    "success": "1",
}
LEVELS = {"NSEC": "noise", "ASEC": "actions"}
"""Baseline → where it composes."""
Values = Mapping[str, float]
"""Metric → value."""


class Bench:
    """Trainings, episodes and rows of one seed.

    Args:
        sizes: of the scenario.
        results: where rows are kept.
        seed: of weights, of the order of data, of which trajectories are seen, and of episodes.
        folder: for what is trained; may be deleted once the rows are there.
        say: told what happens.
    """

    def __init__(
        self, sizes: Sizes, results: Results, seed: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        self.sizes, self.results, self.seed, self.folder, self.say = sizes, results, seed, folder, say

    def once(self, table: str, setting: str, row: str, measure: Callable[[], Values], metric: str) -> None:
        """Measure a row unless it is there, which its `metric` says; all its metrics are kept together."""
        if not self.results.has(table, setting, row, metric, self.seed):
            self.keep(table, setting, row, measure())

    def keep(self, table: str, setting: str, row: str, values: Values) -> None:
        """Keep what was measured."""
        self.results.add(
            Row(
                table=table,
                setting=setting,
                row=row,
                metric=metric,
                unit=UNITS.get(metric, "1"),
                seed=self.seed,
                value=value,
            )
            for metric, value in values.items()
        )
        shown = ", ".join(f"{metric} {value:.3f}" for metric, value in values.items())
        self.say(f"{table} | {setting} | {row} | seed {self.seed}: {shown}")

    def data(self, name: str, **which: Any) -> list[DataConfig]:
        """A data set of `data`, or of the package, or some of its trajectories."""
        path = DATA / f"{name}.hdf5"
        return [DataConfig(path=str(path) if path.exists() else f"{PREFIX}{name}", **which)]

    def few(self, name: str, trajectories: int) -> list[DataConfig]:
        """So many trajectories, others with each seed; fewer are a part of more."""
        return self.data(name, trajectories=trajectories, seed=self.seed)

    def learn(self, name: str, recipe: LearnRecipe) -> str:
        """A training, or what it was; the run's path."""
        run = self.folder / name
        learn(recipe, run, lambda line: None)
        return str(run)

    def policy(
        self,
        name: str,
        data: list[DataConfig],
        steps: int,
        *,
        weights: Weights | None = None,
        critics: str = "",
        keep_every: int = 0,
        dropout: bool = True,
        **acting: Any,
    ) -> str:
        """A diffusion policy from new weights.

        Args:
            name: of the run.
            data: what it clones.
            steps: how long.
            weights: what a transition counts; None: the same.
            critics: by path, for `weights` and for choosing among candidates.
            keep_every: checkpoints that stay.
            dropout: whether the network has it, if it is one that may.
            acting: `num_candidates` and `pick`.
        """
        recipe = PolicyRecipe(
            data=data,
            train=self.sizes.train(steps, self.seed, keep_every),
            policy=PolicyConfig(network=self.sizes.network_config(dropout=dropout), **acting),
            weights=weights or Uniform.Config(),
            critics=critics,
            optimizer=self.sizes.base_optimizer(),
        )
        return self.learn(name, recipe)

    def skill(
        self,
        base: str,
        name: str,
        data: list[DataConfig],
        library: str,
        *,
        full: bool = False,
        rank: int | None = None,
        weights: Weights | None = None,
        critics: str = "",
        beside: Mapping[str, float] | None = None,
        keep_every: int = 0,
    ) -> str:
        """A skill in a library; the run's path.

        Args:
            base: what it is learnt on.
            name: in the library.
            data: what it clones.
            library: a folder beside the runs.
            full: whole matrices instead of low rank (`PSEC (MLP)`).
            rank: None: as the sizes say.
            weights: what a transition counts; None: the same.
            critics: by path, for `weights`.
            beside: skills that are there while it learns, with their weights.
            keep_every: checkpoints that stay.
        """
        sizes, beside = self.sizes, beside or {}
        growth = (
            GrowthConfig(full=FullConfig())
            if full
            else GrowthConfig(rank=rank or sizes.rank, multiplier=sizes.multiplier)
        )
        recipe = SkillRecipe(
            base=base,
            name=name,
            data=data,
            train=sizes.train(sizes.skill_steps, self.seed, keep_every),
            library=self.library(library),
            growth=growth,
            weights=weights or Uniform.Config(),
            critics=critics,
            beside=list(beside),
            beside_weights=list(beside.values()),
            optimizer=sizes.skill_optimizer(),
        )
        return self.learn(f"{library}-runs/{name}", recipe)

    def library(self, name: str) -> str:
        """The path of a library."""
        return str(self.folder / name)

    def composed(
        self,
        name: str,
        base: str,
        data: list[DataConfig],
        *,
        level: str = "parameters",
        skills: Sequence[str] = (),
        library: str = "",
        policies: Sequence[str] = (),
        with_base: bool = True,
        alpha: RouterConfig | None = None,
        weights: Weights | None = None,
        critics: str = "",
    ) -> Policy:
        """Skills or policies under an alpha that learns from the target's data.

        Args:
            name: of the run.
            base: what skills were learnt on.
            data: the target's.
            level: "parameters" (PSEC), "noise" (NSEC) or "actions" (ASEC).
            skills: of the library.
            library: its folder's name.
            policies: further ones, by path.
            with_base: in noise and in actions, whether the base is a part.
            alpha: None: the paper's network.
            weights: what a transition counts; None: the same.
            critics: by path.
        """
        sizes = self.sizes
        steps = sizes.action_steps if level == "actions" else sizes.alpha_steps
        recipe = CompositionRecipe(
            base=base,
            data=data,
            train=sizes.train(steps, self.seed),
            level=level,  # type: ignore[arg-type]
            skills=list(skills),
            library=self.library(library) if library else "skills",
            policies=list(policies),
            with_base=with_base,
            alpha=alpha or ALPHA.config(),
            weights=weights or Uniform.Config(),
            critics=critics,
            optimizer=sizes.alpha_optimizer(),
        )
        return load(self.learn(name, recipe))

    def episodes(self, policy: Policy | str, environment: str, **changes: Any) -> Evaluation:
        """Every policy of a seed meets the same episodes."""
        acts = load(policy) if isinstance(policy, str) else policy
        values = {"episodes": self.sizes.episodes, "seed": self.seed, "traces": 0} | changes
        return evaluate(acts, EvaluationConfig(environment=environment, **values))

    def outcome(self, policy: Policy | str, environment: str, **changes: Any) -> Values:
        """Means of an evaluation's metrics."""
        metrics = self.episodes(policy, environment, **changes).metrics()
        return {name: sum(values) / len(values) for name, values in metrics.items()}
