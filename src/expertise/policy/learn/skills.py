"""Recipe of a skill on a frozen policy."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch

from expertise.errors import RecipeError, SkillError
from expertise.policy.data import DataConfig
from expertise.policy.growing import GrowingPolicy, GrowthConfig
from expertise.policy.learn.common import (
    PolicyOptimizer,
    Prepared,
    base_at,
    behaviour,
    critics_at,
    described,
    facts_of,
    read_all,
    weights_for,
)
from expertise.policy.learn.doubts import LONGER, no_better_than_nothing, of_base
from expertise.policy.objective import WEIGHTS, Uniform, Weights
from expertise.policy.task import PolicyTask
from expertise.runs.config import TrainConfig, may_change
from expertise.runs.files import expand_paths
from expertise.runs.recipe import Choice
from expertise.skills.card import Card
from expertise.skills.folders import require_name
from expertise.skills.library import Library
from expertise.skills.skill import Skill


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillRecipe:
    """A skill on a base, into a library. PSEC's release: 50 k steps of 2048 (DSRL), 200 k of 512 (D4RL)."""

    kind: Literal["skill"] = "skill"
    """Kind of the recipe."""
    base: str
    """The diffusion policy to adapt, by path: a run, a checkpoint, or a folder that `save` wrote."""
    name: str
    """Name of the skill in the library."""
    data: list[DataConfig]
    """Transitions to clone."""
    train: TrainConfig
    """Number of steps, batch size and other settings of the training loop."""
    library: str = "skills"
    """Folder of the library; it is created if it does not exist."""
    purpose: str = ""
    """Purpose of the skill in a sentence, for its card."""
    growth: GrowthConfig = dataclasses.field(default_factory=GrowthConfig)
    """Rank, strength and training settings of the skill."""
    weights: Annotated[Weights, Choice(WEIGHTS, default="uniform")] = dataclasses.field(
        default_factory=Uniform.Config
    )
    """Weights of the transitions: "uniform", "advantage" (reward skills) or "safety" (safety skills)."""
    critics: str = ""
    """Critics that `weights` asks, by path; empty: none."""
    beside: list[str] = dataclasses.field(default_factory=list)
    """Skills of the library that are active while this one is trained."""
    beside_weights: list[float] = dataclasses.field(default_factory=list)
    """Constant weights of the skills in `beside`."""
    force: bool = False
    """Take skills of another base beside it, as long as their shapes fit."""
    optimizer: PolicyOptimizer = dataclasses.field(default_factory=PolicyOptimizer)
    """AdamW and its schedule."""

    def __post_init__(self) -> None:
        expand_paths(self, "base", "library", "critics")
        require_name(self.name)
        if len(self.beside) != len(self.beside_weights):
            raise RecipeError(
                f"beside names {len(self.beside)} skills, beside_weights {len(self.beside_weights)} weights"
            )

    def prepare(self) -> Prepared:
        """Read the base, the library and the data; see `LearnRecipe`."""
        train, library = self.train, Library(self.library)
        base = base_at(self.base, train.device)
        beside = library.load_all(self.beside, base.acting, force=self.force)
        data = read_all(self.data)
        observations, actions = behaviour(data)
        critics = critics_at(self.critics, train.device)
        facts = facts_of(data, base=base.acting, critics=critics)
        facts |= {f"skill {skill.name}": _digest_of(skill) for skill in beside}
        digest = _digest(self, facts)
        self._refuse_taken(library, digest, facts["data"])
        torch.manual_seed(train.seed)
        start = self.growth.new(base.acting, self.name, train.seed)
        policy = GrowingPolicy(base, start, self.growth, beside, self.beside_weights)
        weights = weights_for(self.weights, critics, observations, actions, train.device)
        task = PolicyTask(policy, observations, actions, train, weights=weights)

        def finish() -> None:
            skill = policy.skill()
            if self.name in library.names():
                _require_same(library.load(self.name, base.acting), skill, library)
                return
            library.add(
                skill,
                base=base.acting,
                purpose=self.purpose,
                data=", ".join(source.path for source in self.data),
                data_digest=facts["data"],
                metrics={"recipe": digest, **task.evaluate(lambda: None)},
                parents=self.beside,
                scale_convention="raw",
            )

        return Prepared(
            task=task,
            facts=facts,
            note=described(data),
            warnings=of_base(observations, base),
            finish=finish,
            doubts=lambda: no_better_than_nothing(task, LONGER),
        )

    def _refuse_taken(self, library: Library, digest: str, data: str) -> None:
        if self.name not in library.names():
            return
        card = library.card(self.name)
        own = card is not None and (
            card.metrics.get("recipe") == digest
            or (card.data_digest == data and card.metrics.get("recipe") == _digest_by_place(self, card))
        )
        if not own:
            raise SkillError(
                f"{library.path} has a skill {self.name!r} that another recipe made, or other data",
                "choose another name, or remove that one",
            )


def _digest(recipe: SkillRecipe, facts: Mapping[str, str]) -> str:
    """Return the digest of everything that decides the result, except the length; inputs count by content."""
    values = _decisive(recipe)
    for key in ("data", "base", "critics", "library"):
        del values[key]
    return hashlib.sha256(json.dumps([values, facts], sort_keys=True).encode()).hexdigest()


def _digest_by_place(recipe: SkillRecipe, card: Card) -> str:
    """Return the digest as cards of version 0.1.0 have it: paths counted, and data had fewer keys.

    Args:
        recipe: the recipe of the skill.
        card: card of the skill in the library; it names the paths of its data.
    """
    values = _decisive(recipe)
    plain, places = dataclasses.asdict(DataConfig(path="")), (card.data or "").split(", ")
    if len(places) == len(recipe.data):
        values["data"] = [
            {**table, "path": place} for table, place in zip(values["data"], places, strict=True)
        ]
    values["data"] = [
        {key: v for key, v in table.items() if key in _FIRST_KEYS or v != plain[key]}
        for table in values["data"]
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _decisive(recipe: SkillRecipe) -> dict[str, Any]:
    values = dataclasses.asdict(recipe)
    del values["force"]  # it is a permission and does not change the result
    for name in ("train", "optimizer"):
        values[name] = {k: v for k, v in values[name].items() if not may_change(f"{name}.{k}")}
    # Digests in libraries include it, with the value 1 for most skills.
    values["train"]["accumulation"] = 1
    return values


_FIRST_KEYS = ("path", "layout", "max_cost", "min_return", "trajectories", "seed")
"""Keys of data that are always part of `_digest_by_place`."""


def _digest_of(skill: Skill) -> str:
    """Return the digest of a skill's factors."""
    digest = hashlib.sha256()
    for address, factors in sorted(skill.factors.items()):
        digest.update(f"{address} {factors.rank} {factors.scaling!r}".encode())
        for tensor in (factors.A, factors.B):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _require_same(there: Skill, here: Skill, library: Library) -> None:
    for address, factors in here.factors.items():
        other = there.factors.get(address)
        if other is None or not (torch.equal(factors.A, other.A) and torch.equal(factors.B, other.B)):
            raise SkillError(
                f"{library.path} has an earlier state of skill {here.name!r}",
                "rename or remove that one, and run this again",
            )
