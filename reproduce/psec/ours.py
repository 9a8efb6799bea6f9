"""Ours: one library for all scenarios of a robot, and alpha over skills of different origin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from expertise.mixture.routers.configs import RouterConfig
from expertise.policy.alpha import ALPHA
from expertise.policy.data import DataConfig
from reproduce.psec.bench import Bench, Values
from reproduce.psec.sizes import Sizes

TABLE = "one_library"
SOURCES = {
    "walk": ("walker-walk", "dmc/walker-walk"),
    "run": ("walker-run", "dmc/walker-run"),
    "gravity": ("walker-gravity-1.5", "dmc/walker-walk@gravity=1.5"),
    "mass": ("walker-mass-1.5", "dmc/walker-walk@mass=1.5"),
}
"""Skill → data, and where it acts: other tasks, and other dynamics."""
SHOWN, FEW = 10, 3
"""Trajectories of a skill in the library, and of a target."""
TARGETS = ("gravity", "run")
"""What is asked of a library that has all skills but this one's."""
TOP_P, FIXED = "own and others, top-p", "other skills, fixed"
ORDER = ("own skill", "other skills", "own and others", TOP_P, FIXED, "Base")

SIZES = Sizes(rank=32)
"""The rank that changed dynamics need; see `dynamics.DynamicsSizes`."""


class Ours:
    """All targets of one seed.

    Args:
        bench: of the seed.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def measure(self, target: str) -> None:
        """Every row of one target that is not there yet."""
        others = [name for name in SOURCES if name != target]
        own = f"{target}-{FEW}"
        rows: dict[str, Callable[[], Values]] = {
            "own skill": functools.partial(self._composed, target, [own], "own"),
            "other skills": functools.partial(self._composed, target, others, "others"),
            "own and others": functools.partial(self._composed, target, [own, *others], "all"),
            TOP_P: functools.partial(self._composed, target, [own, *others], "top-p", ALPHA.config("top_p")),
            FIXED: functools.partial(
                self._composed, target, others, "fixed", ALPHA.config("fixed", learn=True)
            ),
            "Base": lambda: self._outcome(self.base, target),
        }
        for row, measured in rows.items():
            self.bench.once(TABLE, f"{target}/{FEW}", row, measured, "return")

    @functools.cached_property
    def base(self) -> str:
        """A walker that stands."""
        return self.bench.policy("base", self.bench.data("walker-stand-apart"), self.bench.sizes.base_steps)

    def _data(self, name: str, count: int) -> list[DataConfig]:
        return self.bench.few(SOURCES[name][0], count)

    def _library(self, names: Sequence[str]) -> str:
        for name in names:
            source, _, few = name.partition("-")
            data = self._data(source, int(few) if few else SHOWN)
            self.bench.skill(self.base, name, data, "library")
        return "library"

    def _composed(
        self, target: str, names: Sequence[str], kind: str, alpha: RouterConfig | None = None
    ) -> Values:
        policy = self.bench.composed(
            f"{target}/{kind}",
            self.base,
            self._data(target, FEW),
            skills=names,
            library=self._library(names),
            alpha=alpha,
        )
        return self._outcome(policy, target)

    def _outcome(self, policy: Any, target: str) -> Values:
        return self.bench.outcome(policy, SOURCES[target][1])


def measure(bench: Bench) -> None:
    """Every target."""
    for target in TARGETS:
        Ours(bench).measure(target)
