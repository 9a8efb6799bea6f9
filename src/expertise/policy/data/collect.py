"""`policy collect`: from a recipe to teachers and to the files with their episodes.

Whatever is finished is kept under a name that follows from all that decided it, so that a run that was killed
goes on, and a recipe that was changed does again only what the change concerns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from expertise.errors import RecipeError, counted, nearest
from expertise.policy.data.actions import Bounds
from expertise.policy.data.rollouts import CHANCE, SCRIPT, RolloutConfig, roll_out
from expertise.policy.data.sac import TeacherConfig, snapshot, train_teacher
from expertise.policy.data.teachers import Actor, Chance, Script, Teacher
from expertise.policy.data.transitions import Transitions, concatenate
from expertise.policy.data.write import WRITERS
from expertise.policy.envs import Environment
from expertise.policy.envs.name import code_of
from expertise.policy.extras import versions
from expertise.runs import folder
from expertise.runs.device import limit_threads
from expertise.runs.files import sha256_of, write_atomic
from expertise.runs.progress import Progress

SUMS = "SHA256SUMS"
"""Digests of the files, as `sha256sum --check` reads them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSetConfig:
    """One data set: rollouts, one after another."""

    name: str
    """Of the file."""
    rollouts: list[RolloutConfig]
    """Whose episodes it holds."""
    layout: str = "dsrl"
    """"dsrl": HDF5 that DSRL's and D4RL's readers take; "minari": a folder."""
    seed: Annotated[int, Ge(0)] = 0
    """Of its episodes."""
    bits: Annotated[int, Ge(8), Le(23)] = 23
    """How many bits of each number's mantissa are kept: with 12 a file is a third smaller."""

    def __post_init__(self) -> None:
        if self.layout not in WRITERS:
            raise RecipeError(f"layout: unknown {self.layout!r}", nearest(self.layout, WRITERS))
        if not self.rollouts:
            raise RecipeError(f"the data set {self.name!r} has no rollouts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Teachers, and the data sets that they make."""

    kind: Literal["collect"] = "collect"
    """What the recipe is for."""
    datasets: list[DataSetConfig]
    """What is written."""
    teachers: list[TeacherConfig] = dataclasses.field(default_factory=list)
    """Who is trained for it, in this order."""
    threads: Annotated[int, Ge(0)] = 1
    """CPU threads; networks this small are slower with more. 0: as many as the machine has cores."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise RecipeError("the recipe names no data sets")
        trained = {teacher.name: teacher for teacher in self.teachers}
        _refuse_repeats([teacher.name for teacher in self.teachers] + [SCRIPT, CHANCE], "teacher")
        _refuse_repeats([data.name for data in self.datasets], "data set")
        before: list[str] = []
        for teacher in self.teachers:
            if teacher.init and teacher.init not in before:
                raise RecipeError(
                    f"teacher {teacher.name!r} goes on from {teacher.init!r}, which is not listed before it",
                    nearest(teacher.init, before),
                )
            before.append(teacher.name)
        for rollout in (rollout for data in self.datasets for rollout in data.rollouts):
            _check_actor(rollout.teacher, rollout.checkpoint, trained)
            if rollout.partner:
                _check_actor(rollout.partner, rollout.partner_checkpoint, trained)


def collect(config: CollectConfig, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Train the teachers and write the data sets, or go on where that was stopped.

    Args:
        config: what to make.
        out: a folder of its own; gets `recipe.toml`, `<data set>.hdf5` (or Minari folders), `SHA256SUMS`,
            `teachers/<name>-<digest>/` with weights and curves, and `parts/` with finished rollouts.
        say: told what happens, a line at a time.

    Returns:
        The data sets' paths, in the recipe's order.

    Raises:
        ExpertiseError: a user's mistake: unknown names, a missing package, a folder in use, a full disk.
    """
    folder.require_free_or_run(out)
    _require_environments(config)
    limit_threads(config.threads)
    with folder.held(out):
        folder.adopt_recipe(out, config, lambda _key: True)
        work = _Work(config, out, say)
        paths = [work.write(data) for data in config.datasets]
        for teacher in config.teachers:  # those that no data set needs
            work.train(teacher.name)
        files = [file for path in paths for file in _files(path)]
        lines = [f"{sha256_of(file)}  {file.relative_to(out).as_posix()}\n" for file in files]
        write_atomic(out / SUMS, "".join(lines))
    return paths


class _Work:
    def __init__(self, config: CollectConfig, out: Path, say: Callable[[str], None]) -> None:
        self._out, self._say = out, say
        self._teachers = {teacher.name: teacher for teacher in config.teachers}

    def train(self, name: str) -> None:
        """Train a teacher, after the one that it goes on from."""
        teacher = self._teachers.get(name)
        if teacher is None:  # "script", "random", or no partner
            return
        self.train(teacher.init)
        init = self._teachers.get(teacher.init)
        begin = snapshot(self._home(init), init.steps) if init else None
        train_teacher(teacher, self._home(teacher), begin, self._say)

    def write(self, data: DataSetConfig) -> Path:
        """Write a data set, once its teachers are trained: the first are there while later ones learn."""
        for rollout in data.rollouts:
            self.train(rollout.teacher)
            self.train(rollout.partner)
        parts, noted = [], []
        for number, rollout in enumerate(data.rollouts):
            part, facts = self._rollout(data, number, rollout)
            parts.append(part)
            noted.append(facts)
        whole = concatenate(_with_costs(parts, noted)).rounded(data.bits)
        facts = {"name": data.name, "seed": data.seed, "bits": data.bits, "rollouts": noted}
        facts["versions"] = versions()
        path: Path = WRITERS[data.layout](self._out, data.name, whole, facts, _bounds_of(noted))
        returns = whole.returns()
        cost = f", cost {whole.episode_costs().mean():.1f}" if whole.costs is not None else ""
        size = f"{counted(len(returns), 'episode')}, {counted(len(whole), 'transition')}"
        self._say(f"{path}: {size}, mean return {returns.mean():.1f}{cost}")
        return path

    def _rollout(
        self, data: DataSetConfig, number: int, rollout: RolloutConfig
    ) -> tuple[Transitions, dict[str, Any]]:
        name = rollout.environment or self._teachers[rollout.teacher].environment
        whose = {key: self._digest(self._teachers.get(key)) for key in (rollout.teacher, rollout.partner)}
        key = _digest(
            [dataclasses.asdict(rollout), name, data.seed, data.name, number, whose, *code_of(name)]
        )
        path = self._out / "parts" / f"{data.name}-{number}-{key}.safetensors"
        kept = _read_part(path)
        if kept is not None:
            return kept
        with Environment(name) as environment:
            teacher = self._actor(rollout.teacher, rollout.checkpoint, rollout.sample, environment)
            partner = (
                self._actor(rollout.partner, rollout.partner_checkpoint, rollout.sample, environment)
                if rollout.partner
                else None
            )
            purpose = f"{data.name}/{number}"
            self._say(f"{purpose}: {counted(rollout.episodes, 'episode')} of {rollout.teacher} in {name}")
            episodes = []
            with Progress(rollout.episodes, unit="episodes") as progress:
                for episode in roll_out(environment, teacher, rollout, data.seed, purpose, partner):
                    episodes.append(episode)
                    progress.update(len(episodes), f"return {float(episode.rewards.sum()):.1f}")
            repeat, bounds = environment.action_repeat, environment.declared_bounds
            for note in environment.notes:
                self._say(note)
        part = joined(episodes)
        facts = {
            **dataclasses.asdict(rollout),
            "environment": name,
            "action_repeat": repeat,
            "mean_return": float(part.returns().mean()),
            "mean_cost": float(part.episode_costs().mean()) if part.costs is not None else None,
            "transitions": len(part),
            "teacher_facts": teacher.facts(),
            "partner_facts": partner.facts() if partner is not None else {},
        }
        if bounds is not None:
            facts["action_low"], facts["action_high"] = bounds
        _write_part(path, part, facts)
        return part, facts

    def _actor(self, name: str, checkpoint: int, sample: bool, environment: Environment) -> Teacher:
        if name == SCRIPT:
            return Script(environment.name)
        if name == CHANCE:
            return Chance(environment.action_dim)
        config = self._teachers[name]
        actor = Actor.read(snapshot(self._home(config), checkpoint or config.steps), sample=sample)
        if actor.widths != (environment.observation_dim, environment.action_dim):
            raise RecipeError(
                f"teacher {name!r} cannot act in {environment.name}",
                f"it was trained in {config.environment}, which has other observations or actions",
            )
        return actor

    def _home(self, teacher: TeacherConfig) -> Path:
        return self._out / "teachers" / f"{teacher.name}-{self._digest(teacher)}"

    def _digest(self, teacher: TeacherConfig | None) -> str:
        """Of all that decides a teacher's weights."""
        if teacher is None:
            return ""
        return _digest([dataclasses.asdict(teacher), self._digest(self._teachers.get(teacher.init))])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _write_part(path: Path, part: Transitions, facts: dict[str, Any]) -> None:
    from safetensors.numpy import save

    plain = {key: np.ascontiguousarray(array) for key, array in part.arrays().items()}
    write_atomic(path, save(plain, {"facts": json.dumps(facts)}))


def _read_part(path: Path) -> tuple[Transitions, dict[str, Any]] | None:
    """A finished rollout; one that was damaged is made again."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
            return Transitions(**arrays), json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def joined(episodes: Sequence[Transitions]) -> Transitions:
    """The episodes of one environment, one after another.

    Environments of Gymnasium report costs in a step's `info` alone: where some episodes have seen one, the
    steps of the others cost 0.
    """
    has_cost = any(episode.costs is not None for episode in episodes)
    return concatenate([_costing(episode) if has_cost else episode for episode in episodes])


def _with_costs(parts: Sequence[Transitions], noted: Sequence[Mapping[str, Any]]) -> list[Transitions]:
    """Rollouts; one that has seen no cost in an environment where another has cost 0 in every step."""
    costing = {
        facts["environment"] for part, facts in zip(parts, noted, strict=True) if part.costs is not None
    }
    return [
        _costing(part) if facts["environment"] in costing else part
        for part, facts in zip(parts, noted, strict=True)
    ]


def _costing(part: Transitions) -> Transitions:
    return part if part.costs is not None else dataclasses.replace(part, costs=np.zeros_like(part.rewards))


def _bounds_of(rollouts: Sequence[Mapping[str, Any]]) -> Bounds | None:
    """The bounds of actions that all rollouts of a data set share; None: each is written in [-1, 1]."""
    found = [(each.get("action_low"), each.get("action_high")) for each in rollouts]
    low, high = found[0]
    return None if low is None or any(each != (low, high) for each in found) else Bounds.of(low, high)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _require_environments(config: CollectConfig) -> None:
    """Build each environment once: what is unknown or not installed should be said before any work."""
    rollouts = [rollout for data in config.datasets for rollout in data.rollouts]
    names = [teacher.environment for teacher in config.teachers]
    for name in dict.fromkeys(names + [rollout.environment for rollout in rollouts if rollout.environment]):
        with Environment(name):
            pass
    for rollout in rollouts:
        if SCRIPT in (rollout.teacher, rollout.partner) and rollout.environment:
            Script(rollout.environment)


def _refuse_repeats(names: list[str], what: str) -> None:
    for name in names:
        if not name or "/" in name or name.startswith("."):
            raise RecipeError(f"{name!r} is no name for a {what}: it becomes part of a file's name")
        if names.count(name) > 1:
            raise RecipeError(f"two {what}s have the name {name!r}")


def _check_actor(name: str, checkpoint: int, trained: dict[str, TeacherConfig]) -> None:
    if name not in trained and name not in (SCRIPT, CHANCE):
        raise RecipeError(f"no teacher {name!r}", nearest(name, [*trained, SCRIPT, CHANCE]))
    kept = [*trained[name].checkpoints, trained[name].steps] if name in trained else []
    if checkpoint and checkpoint not in kept:
        raise RecipeError(
            f"teacher {name!r} has no checkpoint {checkpoint}",
            f"it keeps {', '.join(map(str, kept)) or 'none'}; add it to the teacher's checkpoints",
        )
