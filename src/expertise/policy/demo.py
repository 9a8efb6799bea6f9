"""Demo of policies: safe control of a ball, learnt from the data in the package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expertise.errors import RunError, counted
from expertise.policy.critic import RewardCriticConfig, SafetyCriticConfig
from expertise.policy.critics import CriticsConfig
from expertise.policy.data import DataConfig
from expertise.policy.data.shipped import PREFIX
from expertise.policy.envs import Environment
from expertise.policy.evaluate import EvaluationConfig, evaluate
from expertise.policy.evaluation import Evaluation
from expertise.policy.learn import (
    CompositionRecipe,
    CriticsRecipe,
    LearnRecipe,
    PlainOptimizer,
    PolicyOptimizer,
    PolicyRecipe,
    SkillRecipe,
    learn,
)
from expertise.policy.load import load
from expertise.policy.network import PlainNetwork
from expertise.policy.objective import Advantage, Safety
from expertise.policy.policy import DiffusionPolicy, PolicyConfig
from expertise.runs.config import TrainConfig, may_change
from expertise.runs.files import write_atomic
from expertise.runs.folder import is_run, refuse_changes, require_free_or_run
from expertise.skills.library import Library
from expertise.skills.skill import Skill

ENVIRONMENT = "bullet/BallRun"
DATA = f"{PREFIX}BallRun"
REWARD, SAFETY = "reward", "safety"
"""The skills."""
OURS = "PSEC"
"""The policy that composes them."""
ROWS = {"base": "base", "reward skill": REWARD, "safety skill": SAFETY, OURS: "psec"}
"""Policy → folder of its run."""
LIBRARY = "library"
"""Folder of the library of skills."""
NOTE = (
    "Learnt with a small network (0.15 M parameters) and few steps, from 240 episodes of our own teachers, "
    "with one seed: a demonstration, not a reproduction of the paper's table."
)
"""A caveat to show with the results."""
RESULTS = "results.json"
"""File of the results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Lengths of the trainings. The paper trains for 25 to 330 times as many steps, except for alpha."""

    seed: int = 0
    """Seed of the weights and of the order of the data."""
    critic_steps: int = 2000
    """Training steps of the critics, all at once."""
    base_steps: int = 3000
    """Training steps of the base."""
    skill_steps: int = 1500
    """Training steps of each skill."""
    alpha_steps: int = 1000
    """Training steps of alpha (release: 1,000)."""
    batch_size: int = 256
    """Transitions per step (release: 2,048)."""
    max_cost: float = 5.0
    """Largest cost of trajectories that alpha learns from, and of an episode that counts as safe."""
    min_return: float = 400.0
    """Smallest return of trajectories that alpha learns from: the best sixth of the cheap ones."""
    episodes: int = 20
    """Number of episodes that each policy is evaluated on (paper: 20)."""
    network: PlainNetwork.Config = dataclasses.field(default_factory=PlainNetwork.Config)
    """Network of all policies: the small one."""
    film_every: int = 8
    """Steps between the pictures of PSEC's first episode; 0: no pictures."""


def demo(folder: Path, say: Callable[[str], None], config: DemoConfig | None = None) -> dict[str, Evaluation]:
    """Train critics, a base, a reward skill, a safety skill and alpha(s) over both, then evaluate all.

    If it was stopped, it resumes its trainings; only the evaluations at the end are always run.

    Args:
        folder: receives a run for each training, the library of skills, and `results.json`.
        say: called with each line of progress.
        config: lengths of the trainings.

    Returns:
        Evaluation of each policy; the first episode of each is recorded step by step.

    Raises:
        ExpertiseError: simulator or readers are not installed, or the folder holds something else.
    """
    config = config or DemoConfig()
    wanted = recipes_of(config, folder)
    _require_own(folder, wanted)
    with Environment(ENVIRONMENT):  # report a missing package before anything is trained
        pass
    for number, (name, recipe) in enumerate(wanted.items(), 1):
        say(f"{number} of 5: {_ABOUT[name]}")
        learn(recipe, folder / name, say)
    found = {}
    for row, name in ROWS.items():
        film = config.film_every if row == OURS else 0
        acting = EvaluationConfig(
            environment=ENVIRONMENT, episodes=config.episodes, cost_limit=config.max_cost, film_every=film
        )
        say(f"{row}: {counted(config.episodes, 'episode')}")
        found[row] = evaluate(load(folder / name), acting, say)
    write_atomic(folder / RESULTS, json.dumps(result(folder, found), indent=1) + "\n")
    return found


def _require_own(folder: Path, wanted: Mapping[str, LearnRecipe]) -> None:
    """Refuse a folder with anything except a demo of these recipes, before the first training.

    Raises:
        RunError: it is a file, or holds other things.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder", "choose another --folder")
    first = folder / next(iter(wanted))
    if folder.is_dir() and not is_run(first) and any(path != first for path in folder.iterdir()):
        raise RunError(f"{folder} is not a demo's folder and is not empty", "choose another --folder")
    for name, recipe in wanted.items():
        require_free_or_run(folder / name)
        if is_run(folder / name):
            refuse_changes(folder / name, recipe, may_change)


def result(folder: Path, found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return the evaluations of the policies as plain values."""
    policies = {row: {"run": str(folder / ROWS[row]), **each.summary()} for row, each in found.items()}
    return {"environment": ENVIRONMENT, "folder": str(folder), "policies": policies}


def skills(folder: Path) -> list[Skill]:
    """Open the skills that a demo has learnt."""
    base = load(folder / "base")
    assert isinstance(base, DiffusionPolicy)
    return Library(folder / LIBRARY).load_all([REWARD, SAFETY], base.acting)


_ABOUT = {
    "critics": "critics of reward and of safety",
    "base": "the base, a clone of everything recorded",
    REWARD: "a skill for reward",
    SAFETY: "a skill for safety",
    "psec": "alpha(s), which weighs the skills up state by state",
}
"""Title of each run's training, in the order of training."""


def recipes_of(config: DemoConfig, folder: Path) -> dict[str, LearnRecipe]:
    """Return the recipe of each run; runs come after the runs that they need.

    Args:
        config: lengths of the trainings.
        folder: the folder of the runs.
    """
    everything = [DataConfig(path=DATA)]
    few = [DataConfig(path=DATA, max_cost=config.max_cost, min_return=config.min_return)]
    critics, base, library = (str(folder / name) for name in ("critics", "base", LIBRARY))

    def train(steps: int) -> TrainConfig:
        # More than one thread makes networks this small slower.
        return TrainConfig(
            steps=steps,
            batch_size=config.batch_size,
            seed=config.seed,
            device="cpu",
            threads=1,
            log_every=max(1, steps // 20),
            save_every=max(1, steps // 4),
        )

    def skill(name: str, purpose: str, weights: Advantage.Config | Safety.Config) -> SkillRecipe:
        return SkillRecipe(
            base=base,
            name=name,
            purpose=purpose,
            data=everything,
            library=library,
            weights=weights,
            critics=critics,
            train=train(config.skill_steps),
            optimizer=PolicyOptimizer(learning_rate=1e-3),
        )

    return {
        "critics": CriticsRecipe(
            data=everything,
            critics=CriticsConfig(reward=RewardCriticConfig(), safety=SafetyCriticConfig()),
            train=train(config.critic_steps),
            rewards="range",
            timeouts_end=True,
            optimizer=PlainOptimizer(learning_rate=1e-3),
        ),
        "base": PolicyRecipe(
            data=everything,
            # One action for each state: the safest of several would hide the differences between policies.
            policy=PolicyConfig(network=config.network),
            critics=critics,
            train=train(config.base_steps),
            optimizer=PolicyOptimizer(learning_rate=1e-3),
        ),
        REWARD: skill(REWARD, "be fast, whatever it costs", Advantage.Config(temperature=3.0)),
        SAFETY: skill(SAFETY, "cost nothing", Safety.Config()),
        "psec": CompositionRecipe(
            base=base, skills=[REWARD, SAFETY], library=library, data=few, train=train(config.alpha_steps)
        ),
    }
