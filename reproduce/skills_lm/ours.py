"""The first experiment: a mixture of ours, four skills, and nine ways to serve two mixed targets."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from expertise.lm import LanguageModel, load
from expertise.lm.causal import CausalLM
from expertise.lm.skills import LearntSkill, learn_skill
from expertise.lm.train import train
from expertise.skills import Library, Skill, compose
from reproduce.common.rows import Values
from reproduce.skills_lm.measure import BITS, Bench, Decider, search_weights
from reproduce.skills_lm.plan import (
    COMMON,
    SKILLS,
    TARGETS,
    dense_router,
    file_of,
    sparse_router,
    target_name,
)
from reproduce.skills_lm.text import write_few

MAIN, DOMAINS, PAIR, FEW = "main", "skills", "two_skills", "little_text"
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
        self._little_text(TARGETS[0])

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
            return {BITS: bench.bits(self.fixed, bench.test(pool, self.base), weights)}

        bench.once(DOMAINS, domain, BASE, lambda: alone([0.0] * len(SKILLS)))
        for index, skill in enumerate(SKILLS):
            bench.once(DOMAINS, domain, skill, functools.partial(alone, one_hot(index, len(SKILLS))))
        bench.once(DOMAINS, domain, JOINT, lambda: bench.learnt(self.joint, bench.test(pool, self.base)))

    def _target(self, pair: tuple[str, str]) -> None:
        """A mixed target: every way to serve it."""
        bench, name = self.bench, target_name(pair)
        count = len(SKILLS)
        singles = [one_hot(index, count) for index in range(count)]

        def constant(weights: Sequence[float]) -> Values:
            return {BITS: bench.bits(self.fixed, bench.target(pair, self.base), weights)}

        def searched(starts: Sequence[Sequence[float]], sweeps: int) -> Values:
            held_out = bench.target(pair, self.base, "select")
            return constant(search_weights(lambda w: bench.bits(self.fixed, held_out, w), starts, sweeps))

        def once(row: str, measure: Callable[[], Values]) -> None:
            bench.once(MAIN, name, row, measure)

        once(BASE, lambda: constant([0.0] * count))
        for index, skill in enumerate(SKILLS):
            once(skill, functools.partial(constant, singles[index]))
        # Chosen on other text than it is measured on.
        once(SINGLE, lambda: searched(singles, 0))
        once(UNIFORM, lambda: constant([1 / count] * count))
        once(FIXED, lambda: searched([*singles, [1 / count] * count, [0.5] * count], 3))
        for row in (SEQUENCE, TOKEN, TOP_P):
            once(row, functools.partial(self._composed, SKILLS, pair, row))
        once(JOINT, lambda: bench.learnt(self.joint, bench.target(pair, self.base)))
        once(NEW, lambda: self._new_skill(pair))

    def _composed(self, names: Sequence[str], pair: tuple[str, str], row: str) -> Values:
        chosen = [skill for skill in self.skills if skill.name in names]
        return self.bench.composed(self.base, chosen, pair, self.decider(row), router_work(pair, names, row))

    def decider(self, row: str) -> Decider:
        """Who decides alpha in a row, and what it reads."""
        deciders: dict[str, Decider] = {
            SEQUENCE: (dense_router(), "pooled"),
            TOKEN: (dense_router(), "layer"),
            TOP_P: (sparse_router(self.bench.plan.top_p), "layer"),
        }
        return deciders[row]

    def _new_skill(self, pair: tuple[str, str], pool: str | None = None, steps: int | None = None) -> Values:
        """A skill from the text that routers see, with as many steps as they have."""
        bench, plan = self.bench, self.bench.plan
        source = bench.source((pool or file_of(pair), target_name(pair)))
        steps = steps or plan.router_steps
        config = plan.skill_config(source, plan.rank, steps, bench.seed)
        work = bench.folder / "new" / (file_of(pair) if pool is None else f"{pool}-{steps}")
        learnt = learn_skill(self.base, "new", config, work, say=bench.say)
        return bench.learnt(learnt, bench.target(pair, self.base))

    def _two_skills(self, pair: tuple[str, str]) -> None:
        """The same with no more than the two skills that the target is made of."""
        name = target_name(pair)
        for row in (BASE, *pair):
            self.bench.once(PAIR, "ours", row, functools.partial(self._copied, MAIN, name, row))
        for row in (SEQUENCE, TOKEN):
            self.bench.once(PAIR, "ours", row, functools.partial(self._composed, pair, pair, row))

    def _little_text(self, pair: tuple[str, str]) -> None:
        """The same with little of the target's text: how soon does a router, or a new skill, pay?"""
        bench, plan = self.bench, self.bench.plan
        for num_bytes, steps in itertools.product(plan.few_bytes, plan.few_steps):
            setting = few_setting(num_bytes, steps)
            bench.once(FEW, setting, BASE, functools.partial(self._copied, MAIN, target_name(pair), BASE))
            for row in (SEQUENCE, TOKEN, NEW):
                bench.once(FEW, setting, row, functools.partial(self._few, pair, num_bytes, steps, row))

    def _few(self, pair: tuple[str, str], num_bytes: int, steps: int, row: str) -> Values:
        bench, file = self.bench, file_of(pair)
        documents = bench.prepared(file, self.base).documents("train", file)
        pool = write_few(bench.text, pair, num_bytes, documents)
        if row == NEW:
            return self._new_skill(pair, pool, steps)
        work = f"routers/{pool}-{steps}-{row.replace(' ', '-')}"
        return bench.composed(self.base, self.skills, pair, self.decider(row), work, pool=pool, steps=steps)

    def _copied(self, table: str, setting: str, row: str) -> Values:
        return {BITS: self.bench.value(table, setting, row)}


def router_work(pair: tuple[str, str], names: Sequence[str], row: str) -> str:
    """The folder of a router's training."""
    return f"routers/{file_of(pair)}-{len(names)}-{row.replace(' ', '-')}"


def few_setting(num_bytes: int, steps: int) -> str:
    """What a column of the table of little text is called."""
    return f"{num_bytes / 1000:g} kB, {steps} steps"


def one_hot(index: int, count: int) -> list[float]:
    """One skill with weight 1."""
    return [float(place == index) for place in range(count)]
