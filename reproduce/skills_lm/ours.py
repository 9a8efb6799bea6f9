"""The first experiment: a mixture of ours, four skills, and nine ways to serve two mixed targets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from expertise.lm import LanguageModel, load
from expertise.lm.causal import CausalLM
from expertise.lm.skills import LearntSkill, learn_skill
from expertise.lm.train import train
from expertise.mixture.routers.base import RouterConfig
from expertise.skills import Library, Skill, compose
from expertise.skills.routing import Reads
from reproduce.skills_lm.measure import BITS, Bench, Values, search_weights
from reproduce.skills_lm.plan import (
    COMMON,
    SKILLS,
    TARGETS,
    dense_router,
    file_of,
    sparse_router,
    target_name,
)

MAIN, DOMAINS, PAIR = "main", "skills", "two_skills"
"""Tables."""
BASE, SINGLE, UNIFORM, FIXED = "base", "best single skill", "uniform average", "fixed weights, searched"
SEQUENCE, TOKEN, TOP_P = "α per sequence", "α per token", "top-p over skills"
JOINT, NEW = "joint fine-tuning", "new skill on the target"
ORDER = (BASE, *SKILLS, SINGLE, UNIFORM, FIXED, SEQUENCE, TOKEN, TOP_P, JOINT, NEW)
"""Rows of the main table."""


class Ours:
    """All rows of one seed; what is trained is trained when a row first needs it.

    Args:
        bench: plan, seed, folders and results.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def measure(self) -> None:
        """Every row of this seed that is not there yet."""
        for domain in (COMMON, *SKILLS):
            self._domain(domain)
        for pair in TARGETS:
            self._target(pair)
        self._two_skills(TARGETS[0])

    @functools.cached_property
    def base(self) -> LanguageModel:
        """The base."""
        bench = self.bench
        run = bench.folder / "base"
        train(bench.plan.base_recipe(str(bench.text), bench.seed), run, bench.say)
        return load(run)

    @functools.cached_property
    def skills(self) -> list[Skill]:
        """A skill per domain, from a library."""
        bench = self.bench
        library = Library(bench.folder / "library")
        for domain in SKILLS:
            if domain not in library.names():
                source = bench.source((f"skill.{domain}", domain))
                config = bench.plan.skill_config(source, bench.plan.rank, bench.plan.skill_steps, bench.seed)
                learnt = learn_skill(
                    self.base, domain, config, bench.folder / "skills" / domain, say=bench.say
                )
                library.add(
                    learnt.skill,
                    base=self.base,
                    purpose=f"reads {domain}",
                    data=learnt.data,
                    data_digest=learnt.data_digest,
                    metrics=learnt.metrics,
                )
        return library.load_all(SKILLS, self.base)

    @functools.cached_property
    def fixed(self) -> CausalLM:
        """The base with all skills, for weights that a call names."""
        return self.base.around(compose(self.base, self.skills))

    @functools.cached_property
    def joint(self) -> LearntSkill:
        """One skill with the parameters of all, from all that the others and their routers learn from."""
        bench, plan = self.bench, self.bench.plan
        source = bench.source(
            *((f"skill.{domain}", domain) for domain in SKILLS),
            *((file_of(pair), target_name(pair)) for pair in TARGETS),
        )
        steps = len(SKILLS) * plan.skill_steps + len(TARGETS) * plan.router_steps
        config = plan.skill_config(source, len(SKILLS) * plan.rank, steps, bench.seed)
        return learn_skill(self.base, "joint", config, bench.folder / "joint", say=bench.say)

    def _domain(self, domain: str) -> None:
        """A domain's own test text: the base, each skill alone, and the joint one."""
        bench = self.bench
        pool = f"base.{domain}" if domain == COMMON else f"skill.{domain}"

        def alone(weights: Sequence[float]) -> Values:
            return {BITS: bench.bits(self.fixed, bench.texts(pool, self.base, "test"), weights)}

        bench.once(DOMAINS, domain, BASE, lambda: alone([0.0] * len(SKILLS)))
        for index, skill in enumerate(SKILLS):
            bench.once(DOMAINS, domain, skill, functools.partial(alone, one_hot(index, len(SKILLS))))
        bench.once(
            DOMAINS, domain, JOINT, lambda: bench.learnt(self.joint, bench.texts(pool, self.base, "test"))
        )

    def _target(self, pair: tuple[str, str]) -> None:
        """A mixed target: every way to serve it."""
        bench, name, pool = self.bench, target_name(pair), file_of(pair)
        count = len(SKILLS)
        singles = [one_hot(index, count) for index in range(count)]

        def constant(weights: Sequence[float]) -> Values:
            return {BITS: bench.bits(self.fixed, bench.texts(pool, self.base, "test"), weights)}

        def searched(starts: Sequence[Sequence[float]], sweeps: int) -> Values:
            held_out = bench.texts(pool, self.base, "validation")
            return constant(search_weights(lambda w: bench.bits(self.fixed, held_out, w), starts, sweeps))

        def once(row: str, measure: Callable[[], Values]) -> None:
            bench.once(MAIN, name, row, measure)

        once(BASE, lambda: constant([0.0] * count))
        for index, skill in enumerate(SKILLS):
            once(skill, functools.partial(constant, singles[index]))
        # Chosen on validation text, as whoever has only that would.
        once(SINGLE, lambda: searched(singles, 0))
        once(UNIFORM, lambda: constant([1 / count] * count))
        once(FIXED, lambda: searched([*singles, [1 / count] * count, [0.5] * count], 3))
        for row, (router, reads) in self._routers().items():
            once(row, functools.partial(self._composed, list(SKILLS), pair, router, reads, row))
        once(JOINT, lambda: bench.learnt(self.joint, bench.texts(pool, self.base, "test")))
        once(NEW, lambda: self._new_skill(pair))

    def _routers(self) -> dict[str, tuple[RouterConfig, Reads]]:
        return {
            SEQUENCE: (dense_router(), "pooled"),
            TOKEN: (dense_router(), "layer"),
            TOP_P: (sparse_router(self.bench.plan.top_p), "layer"),
        }

    def _composed(
        self, names: Sequence[str], pair: tuple[str, str], router: RouterConfig, reads: Reads, row: str
    ) -> Values:
        chosen = [skill for skill in self.skills if skill.name in names]
        return self.bench.composed(self.base, chosen, pair, router, reads, row)

    def _new_skill(self, pair: tuple[str, str]) -> Values:
        """A skill from the text that routers see, with as many steps as they have."""
        bench, plan = self.bench, self.bench.plan
        config = plan.skill_config(
            bench.source((file_of(pair), target_name(pair))), plan.rank, plan.router_steps, bench.seed
        )
        learnt = learn_skill(self.base, "new", config, bench.folder / "new" / file_of(pair), say=bench.say)
        return bench.learnt(learnt, bench.texts(file_of(pair), self.base, "test"))

    def _two_skills(self, pair: tuple[str, str]) -> None:
        """The same with no more than the two skills that the target is made of."""
        bench, name = self.bench, target_name(pair)
        for row in (BASE, *pair):
            bench.once(PAIR, "ours", row, functools.partial(self._copied, MAIN, name, row))
        for row in (SEQUENCE, TOKEN):
            router, reads = self._routers()[row]
            bench.once(PAIR, "ours", row, functools.partial(self._composed, pair, pair, router, reads, row))

    def _copied(self, table: str, setting: str, row: str) -> Values:
        return {BITS: self.bench.value(table, setting, row)}


def one_hot(index: int, count: int) -> list[float]:
    """One skill with weight 1."""
    return [float(place == index) for place in range(count)]
