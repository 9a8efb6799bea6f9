"""The bench of both experiments: rows that are measured once, and bits per byte of one text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig, Prepared, SourceTable, prepare
from expertise.lm.evaluate import DomainText, domain_texts, evaluate
from expertise.lm.skills import LearntSkill, evaluate_weights, learn_router
from expertise.mixture.routers.configs import RouterConfig
from expertise.mixture.routes import Routes
from expertise.runs.results import Results
from expertise.skills import Skill, composition_of
from expertise.skills.composed_json import Reads
from reproduce.common import rows
from reproduce.common.rows import Values
from reproduce.skills_lm.plan import Plan, Use, file_of, target_name

BITS, VALIDATION = "test_bits_per_byte", "bits_per_byte"
SECONDS, PARTS, TRAINED = "core_seconds", "mean_active_parts", "trained_parameters"
"""Metrics: seconds are those of the processor, so that a busy machine does not count."""
UNITS = {BITS: "bits/byte", VALIDATION: "bits/byte", SECONDS: "s", PARTS: "skills/token", TRAINED: "1"}


Decider = tuple[RouterConfig, Reads]
"""A router, and what it reads."""


class Bench(rows.Bench):
    """Rows of one seed.

    Args:
        plan: the sizes.
        results: where finished rows are kept.
        seed: of all that is drawn.
        folder: for what is trained.
        text: the folder of the pools.
        say: told what happens.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        seed: int,
        folder: Path,
        text: Path,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(results, seed, folder, say, UNITS)
        self.plan, self.text = plan, text

    def once(
        self, table: str, setting: str, row: str, measure: Callable[[], Values], metric: str = BITS
    ) -> None:
        """Measure a row unless it is there, with the processor's seconds."""

        def timed() -> Values:
            started = time.process_time()
            return {**measure(), SECONDS: round(time.process_time() - started, 1)}

        super().once(table, setting, row, timed, metric)

    def value(self, table: str, setting: str, row: str) -> float:
        """Bits per byte of a row that was measured."""
        (found,) = [
            each
            for each in self.results.select(table, BITS, setting)
            if each.row == row and each.seed == self.seed
        ]
        return found.value

    def source(self, *pools: tuple[str, str]) -> DataConfig:
        """Pools by their files' names, each with the domain that it is counted under."""
        return DataConfig(
            source=[
                SourceTable(path=str(self.text / f"{pool}.jsonl"), domain=domain) for pool, domain in pools
            ]
        )

    def prepared(self, pool: str, base: CausalLM) -> Prepared:
        """The text of one pool, in the base's tokens."""
        assert base.tokenizer is not None
        return prepare(self.source((pool, pool)), base.tokenizer, self.say)

    def test(self, pool: str, base: CausalLM) -> list[DomainText]:
        """The test text of a pool that something learns from."""
        return domain_texts(self.prepared(pool, base), "test", self.plan.test_bytes, self.plan.context)

    def target(self, pair: tuple[str, str], base: CausalLM, use: Use = "held") -> list[DomainText]:
        """A target's text to measure or to select on, from documents that nothing learns from."""
        limit = self.plan.test_bytes if use == "held" else self.plan.search_bytes
        return domain_texts(self.prepared(file_of(pair, use), base), "train", limit, self.plan.context)

    def bits(self, model: CausalLM, texts: list[DomainText], weights: Sequence[float] | None = None) -> float:
        """Bits per byte on one text, with a composed model's own weights or with these."""
        size = 2 * self.plan.batch_size
        found = (
            evaluate(model, texts, size) if weights is None else evaluate_weights(model, texts, size, weights)
        )
        mean = found.mean_bits_per_byte
        assert mean is not None  # a pool has text
        return mean

    def learnt(self, found: LearntSkill, texts: list[DomainText]) -> Values:
        """A skill that was learnt for this: its bits, and how many numbers it has."""
        return {BITS: self.bits(found.model, texts), TRAINED: float(found.skill.num_params())}

    def composed(
        self,
        base: CausalLM,
        skills: Sequence[Skill],
        pair: tuple[str, str],
        decides: Decider,
        work: str,
        *,
        pool: str | None = None,
        steps: int | None = None,
    ) -> Values:
        """Skills under a router that is learnt from the target's text.

        Args:
            base: what they stand on.
            skills: which.
            pair: the target, on whose test text it is measured.
            decides: the router, and what it reads.
            work: the training's folder.
            pool: the text; None: the target's own.
            steps: of the training; None: as the plan says.
        """
        source = self.source((pool or file_of(pair), target_name(pair)))
        config = self.plan.router_config(source, *decides, steps or self.plan.router_steps, self.seed)
        model = learn_router(base, skills, config, self.folder / work, say=self.say).model
        texts = self.target(pair, base)
        routers = composition_of(model.core).routers().values()
        size = sum(parameter.numel() for router in routers for parameter in router.parameters())
        found = {BITS: self.bits(model, texts), TRAINED: float(size)}
        if decides[0].name == "top_p":
            found |= {PARTS: taken(model, texts, self.plan.batch_size)}
        return found


def taken(model: CausalLM, texts: list[DomainText], batch_size: int) -> float:
    """Skills that a token takes, mean over tokens and layers."""
    counts: list[float] = []

    def count(router: nn.Module, inputs: Any, routes: Routes) -> None:
        counts.append(float(routes.parts_per_token().double().mean()))

    with contextlib.ExitStack() as stack:
        for router in composition_of(model.core).routers().values():
            stack.callback(router.register_forward_hook(count).remove)
        evaluate(model, texts, 2 * batch_size)
    return sum(counts) / len(counts)


def search_weights(
    measure: Callable[[Sequence[float]], float], starts: Sequence[Sequence[float]], sweeps: int = 3
) -> list[float]:
    """Constant weights by coordinate search: from the best start, single weights up or down, in halved steps.

    Args:
        measure: what is to be small.
        starts: where it may begin.
        sweeps: passes over the weights; the first moves them by 0.25.
    """
    known: dict[tuple[float, ...], float] = {}

    def cost(weights: Sequence[float]) -> float:
        key = tuple(weights)
        if key not in known:
            known[key] = measure(weights)
        return known[key]

    best = list(starts[min(range(len(starts)), key=lambda index: cost(starts[index]))])
    step = 0.25
    for _ in range(sweeps):
        for index in range(len(best)):
            for direction in (step, -step):
                moved = [*best]
                while True:
                    moved[index] += direction
                    if cost(moved) >= cost(best):
                        break
                    best = [*moved]
        step /= 2
    return best
