"""How the learning rates were chosen: on validation text, with the first seed's base and skills."""

from __future__ import annotations

import dataclasses
import functools

from expertise.lm.skills import learn_router, learn_skill
from reproduce.common.rows import Values
from reproduce.skills_lm.measure import VALIDATION
from reproduce.skills_lm.ours import NEW, SEQUENCE, TOKEN, Ours, router_work
from reproduce.skills_lm.plan import SKILLS, TARGETS, Plan, file_of, target_name

SEARCH = "search"
"""The table."""
SKILL = f"skill {SKILLS[-1]}"
ORDER = (SKILL, NEW, SEQUENCE, TOKEN)
"""Its rows."""


class Search:
    """The same trainings at several rates.

    Args:
        ours: the experiment; trainings that it has already are not done again.
    """

    def __init__(self, ours: Ours) -> None:
        self.ours = ours

    def measure(self) -> None:
        """Every row that is not there yet."""
        for rate in self.ours.bench.plan.search_rates:
            for row in ORDER:
                self.ours.bench.once(
                    SEARCH, f"rate {rate:g}", row, functools.partial(self._at, rate, row), VALIDATION
                )

    def _at(self, rate: float, row: str) -> Values:
        bench = self.ours.bench
        plan = dataclasses.replace(bench.plan, skill_rate=rate, router_rate=rate)
        return {VALIDATION: self._skill(plan, row) if row in (SKILL, NEW) else self._router(plan, row)}

    def _skill(self, plan: Plan, row: str) -> float:
        bench, pair = self.ours.bench, TARGETS[0]
        name, pool, domain, steps = (
            (SKILLS[-1], f"skill.{SKILLS[-1]}", SKILLS[-1], plan.skill_steps)
            if row == SKILL
            else ("new", file_of(pair), target_name(pair), plan.router_steps)
        )
        config = plan.skill_config(bench.source((pool, domain)), plan.rank, steps, bench.seed)
        own = f"skills/{name}" if row == SKILL else f"new/{pool}"
        work = own if plan.skill_rate == bench.plan.skill_rate else f"search/{name}-{plan.skill_rate:g}"
        learnt = learn_skill(self.ours.base, name, config, bench.folder / work, say=bench.say)
        if row == SKILL:
            return float(learnt.metrics["bits_per_byte"]["after"]["mean"])
        return bench.bits(learnt.model, bench.target(pair, self.ours.base, "select"))

    def _router(self, plan: Plan, row: str) -> float:
        bench, pair = self.ours.bench, TARGETS[0]
        source = bench.source((file_of(pair), target_name(pair)))
        config = plan.router_config(source, *self.ours.decider(row), plan.router_steps, bench.seed)
        own = router_work(pair, SKILLS, row)
        chosen = plan.router_rate == bench.plan.router_rate
        work = own if chosen else f"search/{row.replace(' ', '-')}-{plan.router_rate:g}"
        learnt = learn_router(self.ours.base, self.ours.skills, config, bench.folder / work, say=bench.say)
        return bench.bits(learnt.model, bench.target(pair, self.ours.base, "select"))
