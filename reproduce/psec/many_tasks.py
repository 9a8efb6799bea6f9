"""Many tasks (the paper's appendix): an arm that knows some of Meta-World's tasks is shown others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from expertise.policy import load
from expertise.policy.alpha import ALPHA
from expertise.policy.data import DataConfig
from expertise.policy.data.collect import CollectConfig, DataSetConfig, collect
from expertise.policy.data.rollouts import SCRIPT, RolloutConfig
from reproduce.psec.bench import LEVELS, Bench, Values
from reproduce.psec.sizes import Sizes

TABLE, CONTINUAL = "meta_world", "meta_world_continual"
"""Tables."""
KNOWN = (
    "reach-v3",
    "push-v3",
    "window-open-v3",
    "faucet-open-v3",
    "button-press-topdown-v3",
    "drawer-close-v3",
    "door-open-v3",
    "pick-place-v3",
)
"""What the base learns."""
UNSEEN = ("push-wall-v3", "push-back-v3", "shelf-place-v3", "hand-insert-v3", "stick-pull-v3")
"""What it is shown afterwards; named before the runs."""
COUNTS = (1, 3, 10)
"""Demonstrations."""
MAIN = 3
"""Where every baseline is measured first."""
ORDER = (
    "PSEC",
    "PSEC (MLP)",
    "NSEC",
    "ASEC",
    "Scratch",
    "NSEC (LoRA)",
    "ASEC (LoRA)",
    "fixed weights",
    "Base",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSizes(Sizes):
    """Of this scenario: the paper's network."""

    network: Any = "residual"
    base_steps: int = 6000
    skill_steps: int = 1500
    skill_rate: float = 1e-3
    scratch_steps: int = 1500
    alpha_steps: int = 300
    action_steps: int = 300
    multiplier: float = 2.0
    few_batch_size: int = 128
    """Transitions of a step on an unseen task; three demonstrations have about 250."""
    demonstrations: int = 25
    """Of each task that the base learns."""
    noise: float = 0.1
    """On the expert's actions while it shows; recorded is what it meant."""


SIZES = TaskSizes()


class ManyTasks:
    """All tasks of one seed.

    Args:
        bench: of the seed.
        sizes: of the scenario.
    """

    def __init__(self, bench: Bench, sizes: TaskSizes) -> None:
        self.bench, self.sizes = bench, sizes
        few = dataclasses.replace(sizes, batch_size=sizes.few_batch_size)
        self.few = Bench(few, bench.results, bench.seed, bench.folder, bench.say)

    def shown(self, task: str, count: int, *, whole: bool = False) -> None:
        """A task after so many demonstrations; where it is not `whole`, the rows of the paper alone."""
        rows: dict[str, Callable[[], Values]] = {
            "PSEC": functools.partial(self._psec, task, count),
            "Scratch": lambda: self._outcome(self._scratch(task, count), task),
            "Base": functools.partial(self._known, task),
        }
        for row, level in LEVELS.items():
            rows[row] = functools.partial(self._baseline, task, count, level)
        if whole:
            rows["PSEC (MLP)"] = functools.partial(self._psec, task, count, full=True)
            rows["fixed weights"] = functools.partial(self._psec, task, count, fixed=True)
            for row, level in LEVELS.items():
                rows[f"{row} (LoRA)"] = functools.partial(self._over_skills, task, count, level)
        for row, measured in rows.items():
            self.bench.once(TABLE, f"{_short(task)}/{count}", row, measured, "success")

    def unshown(self, task: str) -> None:
        """A task that nobody showed: skills of the other ones, under an alpha that learnt on those."""
        rows: dict[str, Callable[[], Values]] = {"PSEC": lambda: self._others(task, "parameters")}
        for row, level in LEVELS.items():
            rows[f"{row} (LoRA)"] = functools.partial(self._others, task, level)
        rows["Base"] = functools.partial(self._known, task)
        for row, measured in rows.items():
            self.bench.once(TABLE, f"{_short(task)}/0", row, measured, "success")

    def one_after_the_other(self) -> None:
        """Before, and after each new task: success on that one, on all before it, on what the base knew."""
        for number in range(len(UNSEEN) + 1):
            setting = f"after {number} new"
            for task in (*KNOWN, *UNSEEN[:number]):
                again = functools.partial(self._again, task, number)
                self.bench.once(CONTINUAL, setting, _short(task), again, "success")

    @functools.cached_property
    def base(self) -> str:
        """One policy for all tasks that it is shown first; it is told nothing of which one it is in."""
        data = [part for task in KNOWN for part in self._data(task, self.sizes.demonstrations)]
        return self.bench.policy("base", data, self.sizes.base_steps)

    @functools.cache  # noqa: B019 - lives as long as its seed
    def _known(self, task: str) -> Values:
        """The base as it is."""
        return self._outcome(self.base, task)

    def _data(self, task: str, count: int) -> list[DataConfig]:
        """Demonstrations of a scripted expert; fewer are the first of more."""
        episodes = self.sizes.demonstrations if task in KNOWN else max(COUNTS)
        rollout = RolloutConfig(
            teacher=SCRIPT,
            environment=f"metaworld/{task}",
            episodes=episodes,
            noise=self.sizes.noise,
            record="intended",
            until_success=True,
        )
        wanted = DataSetConfig(name=task, rollouts=[rollout], seed=self.bench.seed)
        out = self.bench.folder / "data" / task
        path = out / f"{task}.hdf5"
        if not path.is_file():
            (path,) = collect(CollectConfig(datasets=[wanted]), out, lambda line: None)
        return [DataConfig(path=str(path), trajectories=0 if count == episodes else count)]

    def _skills(self, tasks: Sequence[str], count: int, *, full: bool = False) -> str:
        library = f"library-{count}{'-full' if full else ''}"
        for task in tasks:
            self.few.skill(self.base, _short(task), self._data(task, count), library, full=full)
        return library

    def _scratch(self, task: str, count: int) -> str:
        name = f"{_short(task)}-{count}/scratch"
        return self.few.policy(name, self._data(task, count), self.sizes.scratch_steps)

    def _psec(self, task: str, count: int, *, full: bool = False, fixed: bool = False) -> Values:
        return self._outcome(self._composed(task, count, full=full, fixed=fixed), task)

    def _composed(self, task: str, count: int, *, full: bool = False, fixed: bool = False) -> Any:
        kind = f"{'full' if full else 'psec'}{'-fixed' if fixed else ''}"
        return self.few.composed(
            f"{_short(task)}-{count}/{kind}",
            self.base,
            self._data(task, count),
            skills=[_short(task)],
            library=self._skills([task], count, full=full),
            alpha=ALPHA.config("fixed", learn=True) if fixed else None,
        )

    def _baseline(self, task: str, count: int, level: str) -> Values:
        policy = self.few.composed(
            f"{_short(task)}-{count}/{level}",
            self.base,
            self._data(task, count),
            level=level,
            policies=[self._scratch(task, count)],
        )
        return self._outcome(policy, task)

    def _over_skills(self, task: str, count: int, level: str) -> Values:
        policy = self.few.composed(
            f"{_short(task)}-{count}/{level}-lora",
            self.base,
            self._data(task, count),
            level=level,
            skills=[_short(task)],
            library=self._skills([task], count),
        )
        return self._outcome(policy, task)

    def _others(self, task: str, level: str) -> Values:
        others = [other for other in UNSEEN if other != task]
        policy = self.few.composed(
            f"{_short(task)}-0/{level}",
            self.base,
            [part for other in others for part in self._data(other, MAIN)],
            level=level,
            skills=[_short(other) for other in others],
            library=self._skills(others, MAIN),
        )
        return self._outcome(policy, task)

    def _again(self, task: str, number: int) -> Values:
        """A task once the library has so many skills: composed anew out of what lies on the disk by then."""
        library = self._skills(UNSEEN[:number], MAIN)
        names = [_short(name) for name in UNSEEN[:number]]
        if not names:
            return self._outcome(self.base, task)
        # On what the base knew no skill counts; on a later task its own does, under an alpha learnt again.
        known = task in KNOWN
        policy = self.few.composed(
            f"after-{number}/{'known' if known else _short(task)}",
            self.base,
            [] if known else self._data(task, MAIN),
            skills=names if known else [_short(task)],
            library=library,
            alpha=ALPHA.config("fixed", values=[0.0] * number) if known else None,
        )
        return self._outcome(policy, task)

    def _outcome(self, policy: Any, task: str) -> Values:
        acts = load(policy) if isinstance(policy, str) else policy
        return self.few.outcome(acts, f"metaworld/{task}", stop_at_success=True)


def _short(task: str) -> str:
    return task.removesuffix("-v3")


def measure(bench: Bench) -> None:
    """Every task, where every baseline is measured first."""
    assert isinstance(bench.sizes, TaskSizes)
    tasks = ManyTasks(bench, bench.sizes)
    for task in UNSEEN:
        tasks.shown(task, MAIN, whole=True)
    tasks.one_after_the_other()
    for task in UNSEEN:
        tasks.unshown(task)
    for whole in (False, True):
        for count in COUNTS:
            for task in UNSEEN:
                tasks.shown(task, count, whole=whole)
