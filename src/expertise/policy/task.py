"""Tasks for the training loop, of policies and of critics: a step's rows, losses, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from expertise.errors import DataError
from expertise.policy.acting import Policy
from expertise.policy.batch import Batch
from expertise.policy.critic import costs_of
from expertise.policy.critics import Critics
from expertise.policy.load import texts_of
from expertise.policy.objective import NoiseError, Objective
from expertise.policy.pieces import piece_of
from expertise.runs.checkpoint import random_states, restore_random_states
from expertise.runs.config import TrainConfig
from expertise.runs.device import products, resolve
from expertise.runs.loop import Losses
from expertise.runs.optim import OptimizerConfig
from expertise.shapes import Float

POLICY_OPTIMIZER = OptimizerConfig(
    learning_rate=3e-4, schedule="cosine", final_ratio=0.0, weight_decay=1e-4, beta2=0.999, clip=0.0
)
"""AdamW of the release: optax's defaults, a cosine down to 0. (It also decays biases and norms.)"""

CRITIC_OPTIMIZER = OptimizerConfig(
    learning_rate=3e-4, schedule="constant", weight_decay=0.0, beta2=0.999, clip=0.0
)
"""Adam of the release."""

LOOKED_AT = 2048
"""Maximum number of transitions for an evaluation, evenly spaced."""


class PolicyTask:
    """Behaviour cloning, with or without a weight for each transition.

    A step draws rows with replacement, and the random numbers of the objective, from its number and the seed
    only, on the CPU. So micro-batches do not change a step, dropout included; another device changes dropout.

    Args:
        policy: the policy; its parameters with `requires_grad` are trained.
        observations: observations of the data, not normalised, float32.
        actions: actions of the data.
        config: batch size, accumulation, seed, device.
        weights: weight of each row; None: 1.
        held_out: observations and actions for evaluation; None: evaluate on the training data.
        objective: the error to minimise; None: that of the predicted noise.
        penalty: an additional loss: all observations of a step → a scalar, which need not be a mean.

    Raises:
        DataError: there are no rows, their widths are not the policy's, or every weight is 0.
    """

    unit = "transitions"

    def __init__(
        self,
        policy: Policy,
        observations: Float[Tensor, "rows observations"],
        actions: Float[Tensor, "rows actions"],
        config: TrainConfig,
        *,
        weights: Float[Tensor, " rows"] | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
        objective: Objective | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        seen, done = (observations, actions) if held_out is None else held_out
        _require_fitting(policy, observations, actions)
        _require_fitting(policy, seen, done)
        if weights is not None and not bool((weights > 0).any()):
            raise DataError("every transition has weight 0: there is nothing to learn from")
        device = resolve(config.device)
        self.units_per_step = config.batch_size
        self.model = policy.to(device)
        self._config, self._device = config, device
        self._observations, self._actions = observations.to(device), actions.to(device)
        self._weights = None if weights is None else weights.to(device)
        rows = _evenly(len(seen))
        self._looked_at = seen[rows].to(device), done[rows].to(device)
        # The weights of held-out transitions are unknown.
        counts = weights is not None and held_out is None
        self._counting = self._weights[rows.to(device)] if counts and self._weights is not None else None
        self._whose = "training" if held_out is None else "held-out"
        self._objective, self._penalty = objective or NoiseError(), penalty
        self._step = -1
        self._drawn: list[tuple[Tensor, ...]] = []
        self._random: dict[str, Tensor] = {}

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Compute the weighted error of one micro-batch."""
        pieces = self._config.accumulation
        if micro == 0:
            self._step, self._drawn = step, self._draw(step)
            self._random = random_states() if pieces > 1 else {}
        else:
            restore_random_states(self._random)
        rows, *drawn = self._drawn[micro]
        observations = self._observations.index_select(0, rows)
        actions = self._actions.index_select(0, rows)
        with products(self._device, self._config.bfloat16), piece_of(self.model, micro, pieces):
            errors = self._objective.errors(self.model, observations, actions, tuple(drawn), acting=False)
        if self._weights is not None:
            errors = errors * self._weights.index_select(0, rows)
        loss = errors.mean()
        if self._penalty is None:
            return Losses(loss, {"loss": loss}, {})
        # A penalty may depend on the mean over a step, such as its square: it gets the whole step each time.
        every = torch.cat([piece[0] for piece in self._drawn])
        penalty = self._penalty(self._observations.index_select(0, every))
        return Losses(loss + penalty, {"loss": loss, "penalty": penalty}, {})

    def after_step(self) -> None:
        """Update the weights that act, such as an EMA copy."""
        self.model.update_acting(self._step)

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Compute the unweighted error of the acting weights, with fixed random draws."""
        found = []
        with torch.no_grad():
            for drawn in self._looks():
                between()
                found.append(self._objective.errors(self.model, *self._looked_at, drawn, acting=True).mean())
        return {self._objective.name: float(torch.stack(found).mean())}

    def beside_nothing(self) -> tuple[float, float]:
        """Return the error of the acting weights, and that of predicting zero, on the same draws.

        Each transition has its training weight: a skill that learns from some of them is judged by those.
        """
        self.model.eval()
        own, nothing = [], []
        with torch.no_grad():
            for drawn in self._looks():
                own.append(self._objective.errors(self.model, *self._looked_at, drawn, acting=True))
                nothing.append(self._objective.of_nothing(self._looked_at[1], drawn))
        return self._counted(own), self._counted(nothing)

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """Return one line with the error, and the transitions that it is of."""
        name = self._objective.name
        return f"{name.replace('_', ' ')} {evaluation[name]:.4f} on {self._whose} transitions"

    def files(self) -> Mapping[str, str]:
        """Return the policy's configuration, so that a checkpoint can be loaded by itself."""
        return texts_of(self.model)

    def _looks(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the fixed random draws for an evaluation, on the device."""
        for drawn in self._objective.looks(self.model, len(self._looked_at[1])):
            yield tuple(tensor.to(self._device) for tensor in drawn)

    def _counted(self, errors: list[Tensor]) -> float:
        mean = torch.stack(errors).mean(0)
        if self._counting is None or not bool(self._counting.sum() > 0):
            return float(mean.mean())
        return float((mean * self._counting).sum() / self._counting.sum())

    def _draw(self, step: int) -> list[tuple[Tensor, ...]]:
        """Draw the rows of a step and the objective's random numbers, by micro-batch."""
        size, generator = self._config.batch_size, _generator(self._config.seed, step)
        rows = torch.randint(len(self._actions), (size,), generator=generator)
        drawn = (rows, *self._objective.draw(self.model, size, generator))
        pieces = (tensor.to(self._device).chunk(self._config.accumulation) for tensor in drawn)
        return list(zip(*pieces, strict=True))


class CriticTask:
    """Training of all critics of a data set at once. A step draws its rows as in `PolicyTask`.

    Args:
        critics: the critics to train.
        data: the transitions.
        config: batch size, accumulation, seed, device.
        held_out: transitions for evaluation; None: evaluate on the training data.

    Raises:
        DataError: there are no rows, their widths are not the critics', or costs are needed and missing.
    """

    unit = "transitions"

    def __init__(
        self, critics: Critics, data: Batch, config: TrainConfig, *, held_out: Batch | None = None
    ) -> None:
        seen = data if held_out is None else held_out
        for batch in (data, seen):
            _require_fitting(critics, batch.observations, batch.actions)
            if critics.safety is not None:
                costs_of(batch)
        device = resolve(config.device)
        self.units_per_step = config.batch_size
        self.model = critics.to(device)
        self._config, self._device = config, device
        self._data = data.to(device)
        self._looked_at = seen.take(_evenly(len(seen)).to(seen.observations.device)).to(device)
        self._rows: tuple[Tensor, ...] = ()

    def losses(self, step: int, micro: int, detail: bool) -> Losses:
        """Compute the sum of all critics' losses on one micro-batch, and each of them."""
        if micro == 0:
            rows = torch.randint(
                len(self._data), (self._config.batch_size,), generator=_generator(self._config.seed, step)
            )
            self._rows = rows.to(self._device).chunk(self._config.accumulation)
        with products(self._device, self._config.bfloat16):
            losses = self.model.losses(self._data.take(self._rows[micro]))
        total = torch.stack(list(losses.values())).sum()
        return Losses(total, {"loss": total, **losses}, {})

    def after_step(self) -> None:
        """Update the target networks."""
        for critic in self.model.each().values():
            critic.update_target()

    def evaluate(self, between: Callable[[], None]) -> dict[str, Any]:
        """Compute for each critic its losses, the mean, minimum and maximum V, and the mean Q."""
        data, found = self._looked_at, {}
        with torch.no_grad():
            losses = self.model.losses(data)
        for name in self.model.each():
            between()
            q = self.model.q(name, data.observations, data.actions)
            v = self.model.v(name, data.observations)
            found[name] = {
                "v": float(v.mean()),
                "v_least": float(v.min()),
                "v_greatest": float(v.max()),
                "q": float(q.mean()),
                **{key: float(losses[f"{name}_{key}"]) for key in ("v_loss", "q_loss")},
            }
        return found

    def headline(self, evaluation: Mapping[str, Any]) -> str:
        """Return one line with the values of each critic."""
        return ", ".join(
            f"V of {name} {e['v']:.2f} ({e['v_least']:.2f} to {e['v_greatest']:.2f})"
            for name, e in evaluation.items()
            if name in self.model.each()
        )

    def files(self) -> Mapping[str, str]:
        """Return the critics' configuration, so that a checkpoint can be loaded by itself."""
        return texts_of(self.model)


def _generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one step. The odd factor keeps neighbouring seeds from sharing steps."""
    return torch.Generator().manual_seed((0x9E3779B97F4A7C15 * seed + step) % 2**64)


def _evenly(rows: int) -> Tensor:
    return torch.linspace(0, rows - 1, min(rows, LOOKED_AT), dtype=torch.float64).round().long()


def _require_fitting(model: Policy | Critics, observations: Tensor, actions: Tensor) -> None:
    if not len(observations):
        raise DataError("there are no transitions to learn from")
    theirs = observations.shape[1], actions.shape[1]
    if theirs != (model.observation_dim, model.action_dim):
        raise DataError(
            f"the data has observations and actions of widths {theirs}, "
            f"the model takes {(model.observation_dim, model.action_dim)}"
        )
