"""Evaluate a policy under several seeds, and summarise the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from expertise.errors import RecipeError
from expertise.policy.acting import Policy
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.evaluation import Evaluation, means_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Evaluations of one policy in one environment, by seed."""

    by_seed: Mapping[int, Evaluation]
    """Evaluation of each seed; at least one."""

    @property
    def first(self) -> Evaluation:
        """The evaluation of the first seed, whose traces and film are shown."""
        return next(iter(self.by_seed.values()))

    def summary(self) -> dict[str, float]:
        """Return means over all episodes, as in `Evaluation.summary`; `<name>_error` is a standard error over
        seeds; with one seed, over its episodes.
        """
        if len(self.by_seed) == 1:
            return self.first.summary()
        each = [evaluation.columns() for evaluation in self.by_seed.values()]
        return means_of({name: [float(np.mean(columns[name])) for columns in each] for name in each[0]})

    def to_json(self, *, whole: bool = True) -> dict[str, Any]:
        """Return plain values; `whole=False` leaves out single episodes and their steps."""
        parts = {str(seed): evaluation.to_json() for seed, evaluation in self.by_seed.items()}
        if not whole:
            parts = {seed: {"summary": values["summary"]} for seed, values in parts.items()}
        first = self.first
        return {
            "environment": first.environment,
            "names": list(first.names),
            "episodes": len(first.episodes),
            "cost_limit": first.cost_limit if first.has_cost else None,
            "summary": self.summary(),
            "seeds": parts,
        }


def evaluate_seeds(
    policy: Policy,
    config: EvaluationConfig,
    seeds: Sequence[int],
    say: Callable[[str], None] | None = None,
) -> Evaluations:
    """Evaluate a policy under each seed; a film is of the first seed.

    Args:
        policy: any kind.
        config: environment and number of episodes; its own seed is ignored.
        seeds: different ones, at least one.
        say: called with each line of progress.

    Raises:
        RecipeError: there is no seed, a seed is given twice, or `evaluate` refuses the configuration.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds must be different ones, at least one, not {list(seeds)}")
    found: dict[int, Evaluation] = {}
    for seed in seeds:
        own = dataclasses.replace(config, seed=seed, film_every=config.film_every if not found else 0)
        found[seed] = evaluate(policy, own, say)
    return alike({"": Evaluations(by_seed=found)})[""]


def alike(found: Mapping[str, Evaluations]) -> dict[str, Evaluations]:
    """Evaluations in one environment, all of them with costs, and with success, where one of them has.

    An environment of Gymnasium reports costs in its `info` alone: under a seed, or for a policy, that met
    none, every episode cost 0.
    """
    each = [evaluation for one in found.values() for evaluation in one.by_seed.values()]
    cost, success = any(one.has_cost for one in each), any(one.has_success for one in each)

    def completed(one: Evaluation) -> Evaluation:
        return dataclasses.replace(one, has_cost=cost, has_success=success)

    return {
        name: Evaluations(by_seed={seed: completed(e) for seed, e in one.by_seed.items()})
        for name, one in found.items()
    }
