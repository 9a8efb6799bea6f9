"""Policy shift (the paper's Table 2): from a walker that stands to one that walks and one that runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from expertise.policy.alpha import ALPHA
from reproduce.psec.bench import LEVELS, Bench, Values
from reproduce.psec.sizes import Sizes
from reproduce.psec.verdicts import SMALL

TABLE, ABLATION, TRAINING = "policy_shift", "ablation", "training"
"""Tables."""
BASES = {"S": "walker-stand-apart", "S'": "walker-stand"}
"""Initial policy → data. The teacher of S never learnt anything else; that of S' went on from that of W and
still walks (which the task allows), so that the base walks, too. The teacher of R went on from that of W."""
SHIFTS = {"S→W": ("walk",), "S→R": ("run",), "S+W→R": ("walk", "run")}
"""Shift → skills in the order of learning; the last one is the target's."""
COUNTS = (1, 3, 10, 30)
"""Trajectories of each target."""
CELL = ("S→W", 10)
"""Fixed before the runs: where PSEC is to be above NSEC, ASEC and Scratch."""
OTHERS = (0, 1, 2)
"""Seeds that see all other cells; that one is measured with every seed."""
RANKS = (4, 8, 16, 32, 64)
"""Of the ablation."""
CURVE = 8
"""Points of the curves over training."""
PSEC, FULL, FIXED, SCRATCH = "PSEC", "PSEC (MLP)", "fixed weights", "Scratch"
BARE = "Scratch, no dropout"
"""With the paper's network: a skill learns without dropout, so from scratch it must not be worse for it."""
ORDER = (PSEC, FULL, "NSEC", "ASEC", SCRATCH, "NSEC (LoRA)", "ASEC (LoRA)", FIXED, "Base")

SIZES = Sizes()
"""Of every cell; the one that was fixed has the paper's network, too."""
LARGE = dataclasses.replace(
    SIZES,
    network="residual",
    base_steps=15000,
    skill_steps=4000,
    scratch_steps=4000,
    alpha_steps=500,
    action_steps=500,
    base_rate=3e-4,
    skill_rate=3e-4,
    episodes=50,
)
"""Of the cell that was fixed: the paper's network."""


class PolicyShift:
    """All cells of one seed over one initial policy.

    Args:
        bench: of the seed.
        origin: a key of `BASES`.
        note: what follows the name of the cell that was fixed; where there is one, curves are drawn there.
    """

    def __init__(self, bench: Bench, origin: str = "S", note: str = "") -> None:
        self.bench, self.origin, self.note = bench, origin, note

    def cell(self, shift: str, count: int, rows: Sequence[str] = ORDER) -> None:
        """Every row of one cell that is not there yet."""
        names = SHIFTS[shift]
        note = self.note if (shift, count) == CELL else ""
        setting = f"{shift.replace('S', self.origin)}/{count}{note}"
        target = names[-1]
        measures: dict[str, Callable[[], Values]] = {
            PSEC: functools.partial(self._psec, names, count),
            FULL: functools.partial(self._psec, names, count, full=True),
            FIXED: functools.partial(self._psec, names, count, fixed=True),
            SCRATCH: lambda: self._outcome(self.scratch(target, count), target),
            BARE: lambda: self._outcome(self._bare(target, count), target),
            "Base": lambda: self._outcome(self.base, target),
        }
        for row, level in LEVELS.items():
            measures[row] = functools.partial(self._baseline, names, count, level)
            measures[f"{row} (LoRA)"] = functools.partial(self._over_skills, names, count, level)
        for row in rows:
            self.bench.once(TABLE, setting, row, measures[row], "return")

    def ablate(self) -> None:
        """Ranks, constant weights at every level, and curves over training, in the cell that was fixed."""
        shift, count = CELL
        names = SHIFTS[shift]
        once = functools.partial(self.bench.once, ABLATION, metric="return")
        for rank in RANKS:
            once(setting=f"rank {rank}", row=PSEC, measure=functools.partial(self._rank, names, count, rank))
        for row, level in LEVELS.items():
            fixed = functools.partial(self._baseline, names, count, level, fixed=True)
            once(setting=FIXED, row=row, measure=fixed)
        self._curves(names[-1], count)

    @functools.cached_property
    def base(self) -> str:
        """The initial policy."""
        return self.bench.policy("base", self.bench.data(BASES[self.origin]), self.bench.sizes.base_steps)

    def scratch(self, target: str, count: int) -> str:
        """A policy from new weights on the target's trajectories."""
        return self.bench.policy(
            f"{count}/scratch-{target}",
            self._data(target, count),
            self.bench.sizes.scratch_steps,
            keep_every=self._every(self.bench.sizes.scratch_steps, target, count),
        )

    def _bare(self, target: str, count: int) -> str:
        steps = self.bench.sizes.scratch_steps
        return self.bench.policy(f"{count}/bare-{target}", self._data(target, count), steps, dropout=False)

    def skills(self, names: Sequence[str], count: int, *, full: bool = False, rank: int | None = None) -> str:
        """A library with these skills, each learnt on the initial policy."""
        library = f"{count}/library{'-full' if full else ''}{'' if rank is None else f'-{rank}'}"
        for name in names:
            self.bench.skill(
                self.base,
                name,
                self._data(name, count),
                library,
                full=full,
                rank=rank,
                keep_every=self._every(self.bench.sizes.skill_steps, name, count),
            )
        return library

    def _every(self, steps: int, target: str, count: int) -> int:
        """Checkpoints stay where a curve is drawn through them."""
        return steps // CURVE if target == SHIFTS[CELL[0]][-1] and count == CELL[1] and self.note else 0

    def _data(self, name: str, count: int) -> list[Any]:
        return self.bench.few(f"walker-{name}", count)

    def _outcome(self, policy: Any, target: str) -> Values:
        return self.bench.outcome(policy, f"dmc/walker-{target}")

    def _psec(self, names: Sequence[str], count: int, *, full: bool = False, fixed: bool = False) -> Values:
        library = self.skills(names, count, full=full)
        kind = f"{'full' if full else 'psec'}{'-fixed' if fixed else ''}"
        policy = self.bench.composed(
            f"{count}/{kind}-{'+'.join(names)}",
            self.base,
            self._data(names[-1], count),
            skills=names,
            library=library,
            alpha=ALPHA.config("fixed", learn=True) if fixed else None,
        )
        return self._outcome(policy, names[-1])

    def _rank(self, names: Sequence[str], count: int, rank: int) -> Values:
        policy = self.bench.composed(
            f"{count}/rank-{rank}-{'+'.join(names)}",
            self.base,
            self._data(names[-1], count),
            skills=names,
            library=self.skills(names, count, rank=rank),
        )
        return self._outcome(policy, names[-1])

    def _baseline(self, names: Sequence[str], count: int, level: str, *, fixed: bool = False) -> Values:
        """Over the initial policy and policies from scratch, as in the paper."""
        policy = self.bench.composed(
            f"{count}/{level}{'-fixed' if fixed else ''}-{'+'.join(names)}",
            self.base,
            self._data(names[-1], count),
            level=level,
            policies=[self.scratch(name, count) for name in names],
            alpha=ALPHA.config("fixed", learn=True) if fixed else None,
        )
        return self._outcome(policy, names[-1])

    def _over_skills(self, names: Sequence[str], count: int, level: str) -> Values:
        """Over the same skills as PSEC, each a policy of its own."""
        policy = self.bench.composed(
            f"{count}/{level}-lora-{'+'.join(names)}",
            self.base,
            self._data(names[-1], count),
            level=level,
            skills=names,
            library=self.skills(names, count),
        )
        return self._outcome(policy, names[-1])

    def _curves(self, target: str, count: int) -> None:
        """Returns along training, without any composition."""
        runs: dict[str, Callable[[], Path]] = {
            PSEC: lambda: self._skill_run(target, count, full=False),
            FULL: lambda: self._skill_run(target, count, full=True),
            SCRATCH: lambda: Path(self.scratch(target, count)),
        }
        for row, run in runs.items():
            steps = self.bench.sizes.scratch_steps if row == SCRATCH else self.bench.sizes.skill_steps
            for point in range(1, CURVE + 1):
                step = point * (steps // CURVE)
                measure = functools.partial(self._at, run, step, target)
                self.bench.once(TRAINING, f"step {step}", row, measure, "return")

    def _skill_run(self, target: str, count: int, *, full: bool) -> Path:
        library = self.skills([target], count, full=full)
        return self.bench.folder / f"{library}-runs" / target

    def _at(self, run: Callable[[], Path], step: int, target: str) -> Values:
        return self._outcome(str(run() / "checkpoints" / f"step-{step}"), target)


def measure(bench: Bench) -> None:
    """Everything, the cell that was fixed first."""
    large = Bench(LARGE, bench.results, bench.seed, bench.folder / "large", bench.say)
    PolicyShift(large).cell(*CELL, rows=(PSEC, "NSEC", "ASEC", SCRATCH, "Base", BARE, FULL))
    if bench.seed not in OTHERS:
        return
    own = PolicyShift(bench, note=SMALL)
    own.cell(*CELL)
    own.ablate()
    for shift in SHIFTS:
        for count in COUNTS:
            own.cell(shift, count)
    apart = Bench(bench.sizes, bench.results, bench.seed, bench.folder / "apart", bench.say)
    PolicyShift(apart, "S'").cell(*CELL)
