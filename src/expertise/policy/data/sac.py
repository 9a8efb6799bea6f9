"""Teachers trained by soft actor-critic (stable-baselines3): exact to go on with, never pickled.

Everything random is drawn anew from seed and episode when an episode begins, and the state is saved between
episodes. So a training that was killed ends in the same weights as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from expertise.errors import RecipeError
from expertise.policy.data.teachers import FACTS, WEIGHTS, Actor, Teacher
from expertise.policy.envs import Environment, Name
from expertise.policy.extras import needed, quiet, versions
from expertise.runs import checkpoint
from expertise.runs.metrics import MetricsLog
from expertise.runs.progress import Progress

_STATE = "state"
_TEMPERATURE = "log_ent_coef"
_REPLAY = ("observations", "next_observations", "actions", "rewards", "dones")
_ALL = 10**9  # checkpoints to keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class SacConfig:
    """Soft actor-critic (arXiv 1812.05905), one update per step."""

    hidden: tuple[Annotated[int, Ge(1)], ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Of actor, critics and temperature."""
    batch_size: Annotated[int, Ge(1)] = 128
    """Transitions per update."""
    discount: Annotated[float, Gt(0), Le(1)] = 0.99
    """Of the return."""
    random_steps: Annotated[int, Ge(0)] = 1000
    """Steps before the first update: at random, or by the teacher that is gone on from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A policy trained online, to collect data with."""

    name: str
    """What data sets call it."""
    environment: str
    """Where it is trained."""
    steps: Annotated[int, Ge(1)]
    """Decisions in the environment."""
    init: str = ""
    """Name of a teacher listed before, from whose weights it goes on; empty: from random weights."""
    cost_weight: Annotated[float, Ge(0)] = 0.0
    """λ: it maximises reward - λ · cost."""
    checkpoints: list[Annotated[int, Ge(1)]] = dataclasses.field(default_factory=list)
    """Steps after which it is kept too, besides the end."""
    seed: Annotated[int, Ge(0)] = 0
    """Of weights, episodes and noise."""
    evaluate_every: Annotated[int, Ge(1)] = 5000
    """Steps between looks at its return."""
    episodes: Annotated[int, Ge(1)] = 5
    """Episodes per look, with its mean action."""
    save_every: Annotated[int, Ge(1)] = 2500
    """Steps, about, between states that a killed training goes on from."""
    sac: SacConfig = dataclasses.field(default_factory=SacConfig)
    """How it learns."""

    def __post_init__(self) -> None:
        Name.parse(self.environment)
        late = [step for step in self.checkpoints if step > self.steps]
        if late:
            raise RecipeError(f"teacher {self.name!r} is to be kept at step {late[0]} of {self.steps}")


def train_teacher(config: TeacherConfig, folder: Path, init: Path | None, say: Callable[[str], None]) -> None:
    """Train a teacher, or go on with it; nothing is done where it is finished.

    Args:
        config: what to train.
        folder: gets `checkpoints/step-N/` with weights and facts, `metrics.jsonl`, and the state meanwhile.
        init: a teacher's `step-N` folder to go on from.
        say: told what happens.

    Raises:
        ExpertiseError: unknown environment, missing packages, a full disk.
    """
    if (folder / "checkpoints" / f"step-{config.steps}").is_dir():
        return
    with (
        _shared_randomness_kept(),
        Environment(config.environment) as environment,
        Environment(config.environment) as judge,
    ):
        training = _Training(config, folder, init, environment, judge, say)
        say(f"teacher {config.name}: {config.environment}, {config.steps} steps, from {training.step}")
        training.run()
    # It served to go on; the weights at the end stand beside it.
    shutil.rmtree(folder / _STATE, ignore_errors=True)


@contextlib.contextmanager
def _shared_randomness_kept() -> Iterator[None]:
    """Put the generators back that stable-baselines3 shares with everyone."""
    before = np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(before)


def snapshot(folder: Path, step: int) -> Path:
    """Where a teacher's weights after so many steps are."""
    return folder / "checkpoints" / f"step-{step}"


def mean_return(teacher: Teacher, environment: Environment, episodes: int, seed: int) -> tuple[float, float]:
    """Mean return and mean cost over episodes seeded seed, seed + 1, …"""
    totals = np.zeros((episodes, 2))
    for episode in range(episodes):
        observation, dice = environment.reset(seed + episode), np.random.default_rng(seed + episode)
        over = False
        while not over:
            step = environment.step(teacher.act(observation, dice))
            observation, over = step.observation, step.terminated or step.truncated
            totals[episode] += step.reward, step.cost
    reward, cost = totals.mean(0)
    return float(reward), float(cost)


class _Training:
    def __init__(
        self,
        config: TeacherConfig,
        folder: Path,
        init: Path | None,
        environment: Environment,
        judge: Environment,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._folder, self._say = config, folder, say
        self._environment, self._judge = environment, judge
        self._fine_tuned = init is not None
        self._model = _model(config, environment)
        self.step = self._episode = 0
        state = checkpoint.latest(folder / _STATE, set_aside=True)
        if state is not None:
            self._restore(state)
        elif init is not None:
            self._go_on_from(init)
        self._log = MetricsLog(folder, self.step)

    def _go_on_from(self, init: Path) -> None:
        weights, mine = checkpoint.open_checkpoint(init).tensors(WEIGHTS), self._weights()
        if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in mine.items()}:
            raise RecipeError(
                f"teacher {self._config.name!r} cannot go on from {self._config.init!r}: other networks",
                "both need the same sac.hidden, and environments with the same observations and actions",
            )
        self._load(weights)

    def _weights(self) -> dict[str, Tensor]:
        """All that was learnt: networks, and the temperature, without which the actor would forget first."""
        learnt = {**self._model.policy.state_dict(), _TEMPERATURE: self._model.log_ent_coef.detach()}
        return {name: tensor.clone() for name, tensor in learnt.items()}

    def _load(self, weights: dict[str, Tensor]) -> None:
        self._model.log_ent_coef.data.copy_(weights[_TEMPERATURE])
        self._model.policy.load_state_dict({n: t for n, t in weights.items() if n != _TEMPERATURE})

    def run(self) -> None:
        saved = self.step
        with Progress(self._config.steps, done=self.step, unit="steps") as progress:
            while self.step < self._config.steps:
                total = self._run_episode(progress)
                if self.step - saved >= self._config.save_every and self.step < self._config.steps:
                    self._save_state()
                    saved = self.step
                progress.update(self.step, f"return {total:.0f}")

    def _run_episode(self, progress: Progress) -> float:
        self._episode += 1
        start = int(np.random.SeedSequence([self._config.seed, self._episode]).generate_state(1)[0])
        torch.manual_seed(start)
        np.random.seed(start)  # stable-baselines3 draws batches from NumPy's shared generator
        dice = np.random.default_rng(start)
        observation, total, over = self._environment.reset(start), 0.0, False
        while not over and self.step < self._config.steps:
            action = self._act(observation, dice)
            step = self._environment.step(action)
            worth = step.reward - self._config.cost_weight * step.cost
            self._remember(observation, step.observation, action, worth, step.terminated)
            observation, over, total = step.observation, step.terminated or step.truncated, total + worth
            self.step += 1
            if self.step >= self._config.sac.random_steps:
                self._model.train(gradient_steps=1, batch_size=self._config.sac.batch_size)
            self._look()
            progress.update(self.step, "")
        return total

    def _act(self, observation: Any, dice: np.random.Generator) -> Any:
        if self.step < self._config.sac.random_steps and not self._fine_tuned:
            return dice.uniform(-1.0, 1.0, self._environment.action_dim).astype(np.float32)
        with torch.no_grad():
            return self._model.actor(torch.from_numpy(observation)[None])[0].numpy()

    def _remember(self, before: Any, after: Any, action: Any, reward: float, terminated: bool) -> None:
        self._model.replay_buffer.add(
            before[None],
            after[None],
            action[None],
            np.array([reward], np.float32),
            np.array([terminated]),
            [{}],
        )

    def _look(self) -> None:
        """Note return and cost of the mean action, and keep the weights, when it is time to."""
        keep = self.step in (*self._config.checkpoints, self._config.steps)
        if not keep and self.step % self._config.evaluate_every:
            return
        weights = self._weights()
        reward, cost = mean_return(
            Actor(weights, sample=False), self._judge, self._config.episodes, self._config.seed
        )
        self._log.metric(kind="evaluation", step=self.step, mean_return=reward, mean_cost=cost)
        self._say(f"teacher {self._config.name}, step {self.step}: return {reward:.1f}, cost {cost:.1f}")
        if keep:
            facts = {
                **dataclasses.asdict(self._config),
                "step": self.step,
                "return": reward,
                "cost": cost,
                "versions": versions(),
            }
            checkpoint.save(
                self._folder, self.step, {WEIGHTS: weights}, {FACTS: json.dumps(facts, indent=1)}, keep=_ALL
            )

    def _save_state(self) -> None:
        model, buffer = self._model, self._model.replay_buffer
        tensors = {
            WEIGHTS: self._weights(),
            "actor": checkpoint.optimizer_tensors(model.policy, model.actor.optimizer),
            "critic": checkpoint.optimizer_tensors(model.policy, model.critic.optimizer),
            "temperature": dict(model.ent_coef_optimizer.state[model.log_ent_coef]),
            "replay": {name: torch.from_numpy(getattr(buffer, name)[: buffer.pos]) for name in _REPLAY},
        }
        checkpoint.save(self._folder / _STATE, self.step, tensors, {"episode": str(self._episode)}, keep=1)

    def _restore(self, state: checkpoint.Checkpoint) -> None:
        model, buffer = self._model, self._model.replay_buffer
        self.step, self._episode = state.step, int(state.text("episode"))
        self._load(state.tensors(WEIGHTS))
        checkpoint.restore_optimizer(model.policy, model.actor.optimizer, state.tensors("actor"))
        checkpoint.restore_optimizer(model.policy, model.critic.optimizer, state.tensors("critic"))
        model.ent_coef_optimizer.state[model.log_ent_coef] = state.tensors("temperature")
        for name, rows in state.tensors("replay").items():
            getattr(buffer, name)[: len(rows)] = rows.numpy()
            buffer.pos = len(rows)


def _model(config: TeacherConfig, environment: Environment) -> Any:
    """stable-baselines3's SAC with room for every step; it never touches the environment itself."""
    what = "training a teacher"
    sb3, gymnasium = needed("stable_baselines3", what), needed("gymnasium", what)
    spaces = gymnasium.Env()
    spaces.observation_space = gymnasium.spaces.Box(
        -np.inf, np.inf, (environment.observation_dim,), np.float32
    )
    spaces.action_space = gymnasium.spaces.Box(-1.0, 1.0, (environment.action_dim,), np.float32)
    with quiet():
        model = sb3.SAC(
            "MlpPolicy",
            spaces,
            learning_rate=config.sac.learning_rate,
            batch_size=config.sac.batch_size,
            gamma=config.sac.discount,
            # It begins again at the front when full, which must not happen.
            buffer_size=config.steps + 1,
            policy_kwargs={"net_arch": list(config.sac.hidden)},
            seed=config.seed,
            device="cpu",
        )
    model.set_logger(needed("stable_baselines3.common.logger", what).Logger(None, []))
    return model
