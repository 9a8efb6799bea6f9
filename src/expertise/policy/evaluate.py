"""The one loop that lets a policy act."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from expertise.errors import DeviceError, RecipeError, counted
from expertise.policy.acting import Policy, require_acting
from expertise.policy.data.rollouts import episode_seeds
from expertise.policy.envs import Environments, Name
from expertise.policy.evaluation import Episode, Evaluation, Trace
from expertise.runs.progress import Progress
from expertise.shapes import Bool, Float

_AHEAD = 32
"""Noise is drawn for so many candidates of an episode at once: a draw costs more than its numbers do."""

_WEIGHED_EVERY = 8
"""Steps from one look at the weights of all episodes to the next: neighbours hardly differ."""

_SIZE = (320, 240)
"""Of a picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Episodes of a policy. The paper: 20 for each seed on DSRL's tasks, 10 elsewhere."""

    environment: Any
    """Where it acts: a name (see `expertise.policy.envs`), an id that Gymnasium knows, `module:function`; in
    Python also a `gymnasium.Env`, whose episodes run one after another, or a callable that makes one."""
    episodes: Annotated[int, Ge(1)] = 20
    """How many."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the episodes and of the policy's noise; every policy meets the same ones."""
    parallel: Annotated[int, Ge(1)] = 20
    """Episodes side by side. It may change sums in their last digits, which some robots feel."""
    num_candidates: Annotated[int, Ge(1)] | None = None
    """Actions that are drawn for each state; left out: the policy's own number."""
    pick: str | None = None
    """Which of them is taken: "first", "max-q" or "min-qc"; left out: the policy's own."""
    cost_limit: Annotated[float, Ge(0)] = 10.0
    """Cost of an episode that counts as 1 (PSEC's release: 10)."""
    stop_at_success: bool = False
    """End an episode once its task is done."""
    traces: Annotated[int, Ge(0)] = 1
    """The first so many episodes are kept step by step."""
    film_every: Annotated[int, Ge(0)] = 0
    """A picture of each kept episode every so many steps; 0: none."""

    def __post_init__(self) -> None:
        if isinstance(self.environment, str):
            Name.parse(self.environment)
        if not math.isfinite(self.cost_limit) or self.cost_limit < 0:
            raise RecipeError(f"cost_limit must be a finite number from 0 on, not {self.cost_limit:g}")
        require_acting(self.num_candidates, self.pick)


def evaluate(
    policy: Policy, config: EvaluationConfig, say: Callable[[str], None] | None = None
) -> Evaluation:
    """Let a policy act.

    An episode and the policy's noise in it follow from seed and number alone. Where no pictures can be taken
    that is said, and the evaluation goes on without.

    Args:
        policy: any kind; it is put into evaluation mode.
        config: where, how often, which candidates.
        say: told what happens, a line at a time; None: nothing is told, and no progress shown.

    Raises:
        RecipeError: there is no such environment, or the policy is for other observations or actions.
        MissingExtra: the environment's packages are not installed.
    """
    policy.eval()
    seeds = list(itertools.islice(episode_seeds(config.seed, "evaluation"), config.episodes))
    episodes: list[Episode] = []
    traces: list[Trace] = []
    with Environments(config.environment, min(config.parallel, config.episodes)) as environments:
        _require_fitting(policy, environments)
        parallel = len(environments)
        with _Shown(config.episodes * environments.max_steps, say) as shown:
            for first in range(0, config.episodes, parallel):
                here = _Round(policy, config, environments, shown, first)
                here.run(seeds[first : first + parallel])
                episodes += here.episodes()
                traces += here.traces()
        if environments.num_blown_up and say is not None:
            say(f"{counted(environments.num_blown_up, 'episode')} ended early: the simulation ran away")
        if say is not None:
            for note in environments.notes:
                say(note)
        return Evaluation(
            environment=environments.name,
            names=policy.names,
            has_cost=environments.has_cost,
            has_success=environments.has_success,
            cost_limit=config.cost_limit,
            episodes=episodes,
            traces=traces,
        )


class _Round:
    """As many episodes as there are environments, side by side from their first steps on."""

    def __init__(
        self,
        policy: Policy,
        config: EvaluationConfig,
        environments: Environments,
        shown: _Shown,
        first: int,
    ) -> None:
        self._policy, self._config, self._environments = policy, config, environments
        self._shown, self._first = shown, first
        self._device = policy.scale.mean.device
        number = config.num_candidates
        self._number = policy.num_candidates if number is None else number
        self._ahead = max(1, _AHEAD // self._number)

    def run(self, seeds: Sequence[tuple[int, np.random.Generator]]) -> None:
        """Let the policy act until all episodes are over."""
        environments, self._seeds = self._environments, [seed for seed, _ in seeds]
        generators = [torch.Generator().manual_seed(int(dice.integers(2**63))) for _, dice in seeds]
        num_episodes = len(seeds)
        self._steps = np.zeros(num_episodes, int)
        self._totals, self._costs = np.zeros((2, num_episodes))
        self._successes = np.zeros(num_episodes, bool)
        self._weights = np.zeros((num_episodes, len(self._policy.names)))
        self._weighed = np.zeros(num_episodes, int)
        kept = max(0, min(num_episodes, self._config.traces - self._first))
        self._kept = [_Kept(self._first + index) for index in range(kept)]
        observations = environments.reset(self._seeds)
        while (running := environments.running[:num_episodes].copy()).any():
            step = int(self._steps.max())
            if step % self._ahead == 0:
                noise = self._draw(generators)
            seen = torch.from_numpy(observations[:num_episodes][running]).to(self._device)
            self._look(step, running, seen)
            actions = np.zeros((len(environments), environments.action_dim), np.float32)
            now = noise[:, torch.from_numpy(running), step % self._ahead]
            acts = self._policy.act(seen, pick=self._config.pick, noise=now)
            actions[:num_episodes][running] = acts.cpu().numpy()
            observations = self._take(environments, actions, running)
            self._shown.add(int(running.sum()))

    def _draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """`[sheets, episodes, steps, candidates, actions]`, each episode's own, on the policy's device."""
        return torch.stack(
            [self._policy.draw(self._ahead, self._number, generator) for generator in generators], dim=1
        )

    def _take(
        self, environments: Environments, actions: Float[np.ndarray, "environments action"], running: Any
    ) -> Float[np.ndarray, "environments observation"]:
        outcome, number = environments.step(actions), len(running)
        rewards, costs = outcome.rewards[:number], outcome.costs[:number]
        self._totals += rewards
        self._costs += costs
        self._successes |= outcome.successes[:number]
        self._steps += running
        for index, kept in enumerate(self._kept):
            if running[index]:
                kept.rewards.append(rewards[index])
                kept.costs.append(costs[index])
        if self._config.stop_at_success:
            environments.running[:number] &= ~self._successes
        return outcome.observations

    def _look(self, step: int, running: Bool[np.ndarray, " episodes"], seen: Tensor) -> None:
        """Keep what a trace holds, and now and then the weights of all episodes, before the step is done."""
        looked_at = np.flatnonzero(running[: len(self._kept)])
        weighs_all = step % _WEIGHED_EVERY == 0
        if not weighs_all and not len(looked_at):
            return
        with torch.no_grad():
            weighed = self._policy.weigh(seen if weighs_all else seen[: len(looked_at)])
        alpha = None if weighed is None else weighed.detach().cpu().numpy()
        if weighs_all and alpha is not None:
            self._weights[running] += alpha
            self._weighed += running
        if not len(looked_at):
            return
        critics, risk = self._policy.critics, None
        if critics is not None and critics.safety is not None:
            risk = critics.v("safety", seen[: len(looked_at)]).cpu().numpy()
        every = self._config.film_every
        for row, index in enumerate(looked_at):
            kept, environment = self._kept[index], self._environments[int(index)]
            if alpha is not None:
                kept.alpha.append(alpha[row])
            if risk is not None:
                kept.risk.append(float(risk[row]))
            position = environment.position()
            if position is not None:
                kept.positions.append(position)
            if every and step % every == 0 and self._shown.has_pictures:
                try:
                    kept.frames.append(environment.render(*_SIZE))
                    kept.frame_steps.append(step)
                except DeviceError as error:
                    self._shown.no_pictures(error)

    def episodes(self) -> list[Episode]:
        """What came of each."""
        weights = self._weights / self._weighed.clip(1)[:, None]
        return [
            Episode(
                seed=seed,
                steps=int(self._steps[i]),
                total=float(self._totals[i]),
                cost=float(self._costs[i]),
                success=bool(self._successes[i]),
                alpha=tuple(map(float, weights[i])),
            )
            for i, seed in enumerate(self._seeds)
        ]

    def traces(self) -> list[Trace]:
        """Those that were kept."""
        return [kept.trace() for kept in self._kept]


class _Kept:
    """A trace as it grows."""

    def __init__(self, episode: int) -> None:
        self.episode = episode
        self.rewards: list[float] = []
        self.costs: list[float] = []
        self.alpha: list[Any] = []
        self.positions: list[tuple[float, float]] = []
        self.risk: list[float] = []
        self.frames: list[Any] = []
        self.frame_steps: list[int] = []

    def trace(self) -> Trace:
        return Trace(
            episode=self.episode,
            rewards=np.array(self.rewards),
            costs=np.array(self.costs),
            alpha=np.stack(self.alpha) if self.alpha else None,
            positions=np.array(self.positions) if self.positions else None,
            risk=np.array(self.risk) if self.risk else None,
            frames=self.frames,
            frame_steps=self.frame_steps,
        )


class _Shown:
    """What a human is told meanwhile."""

    def __init__(self, total: int, say: Callable[[str], None] | None) -> None:
        self._say, self._done = say, 0
        self._progress = None if say is None else Progress(total, unit="steps")
        self.has_pictures = True

    def __enter__(self) -> _Shown:
        if self._progress is not None:
            self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def add(self, steps: int) -> None:
        """So many steps more are done."""
        self._done += steps
        if self._progress is not None:
            self._progress.update(self._done, "acting")

    def no_pictures(self, error: DeviceError) -> None:
        """Pictures cannot be taken: say why, once."""
        self.has_pictures = False
        if self._say is not None:
            self._say(f"no film: {error.message}")
            for hint in error.hints:
                self._say(hint)


def _require_fitting(policy: Policy, environments: Environments) -> None:
    theirs = environments.observation_dim, environments.action_dim
    if theirs != (policy.observation_dim, policy.action_dim):
        raise RecipeError(
            f"{environments.name} has observations and actions of widths {theirs}, "
            f"the policy is for {(policy.observation_dim, policy.action_dim)}"
        )
