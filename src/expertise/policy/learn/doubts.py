"""Warnings about data before a training, and about its result after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from expertise.policy.batch import Scale
from expertise.policy.data import DataConfig, Transitions
from expertise.policy.data.shipped import PREFIX
from expertise.policy.policy import DiffusionPolicy
from expertise.policy.task import PolicyTask

LONGER = "raise train.steps, or choose another optimizer.learning_rate"
"""Advice for a bad result on well-scaled observations."""
_LEAST, _GREATEST = 0.01, 30.0
"""Range of component sizes that networks handle well; joint velocities of simulated robots reach 10."""
_NOISE = 1e-8
"""Variation below which a component is constant except for rounding."""
_ROWS = 65536
"""Number of rows from which the size of a component is estimated."""
_NAMED = 3
"""Number of components to name in a warning."""


def of_scale(observations: Tensor, scale: Scale, *, normalized: bool, key: str) -> list[str]:
    """Return warnings about observations of a scale that a network cannot learn from.

    Args:
        observations: `[rows, width]`, not normalised.
        scale: the scale that is applied before networks see them.
        normalized: True if the scale was computed from them.
        key: name of the recipe key that sets this.
    """
    if normalized:
        return left_small(observations, scale)
    return far_from_unit(observations, scale, f"set {key} = true")


def of_base(observations: Tensor, base: DiffusionPolicy) -> list[str]:
    """Return a warning if observations are far outside the range that a base can use.

    Args:
        observations: `[rows, width]`, not normalised.
        base: the base, with the scale of its training data, if it has one.
    """
    if base.config.normalize:
        # A component that varied for the base may be constant in a few trajectories: only large ones are far.
        return far_from_unit(
            observations, base.scale, "give them in the units that the base was learnt with", small=False
        )
    return far_from_unit(observations, base.scale, "learn the base with policy.normalize = true")


def far_from_unit(observations: Tensor, scale: Scale, advice: str, *, small: bool = True) -> list[str]:
    """Return a warning if networks see observations that are far from unit scale.

    Args:
        observations: `[rows, width]`, not normalised.
        scale: the scale that is applied before networks see them.
        advice: advice for the user.
        small: also warn of components that are too small.
    """
    step = -(-len(observations) // _ROWS)
    seen = scale(observations[::step].to(scale.mean)).double().cpu()
    size, varies = seen.square().mean(0).sqrt(), seen.std(0, correction=0)
    far = size > _GREATEST
    if small:
        far |= (size < _LEAST) & (varies > _NOISE)
    if not bool(far.any()):
        return []
    known = _listed(f"component {index} is about {float(size[index]):.4g}" for index in _where(far))
    return [f"observations are far from unit scale ({known}): {advice}"]


def left_small(observations: Tensor, scale: Scale) -> list[str]:
    """Return a warning if normalisation treats a component as constant that is only in large units."""
    step = -(-len(observations) // _ROWS)
    raw = observations[::step].double().cpu()
    varies, size = raw.std(0, correction=0), raw.square().mean(0).sqrt()
    left = (scale.std.cpu() == 1.0) & (varies < 1e-3) & (varies > _NOISE) & (varies > 0.1 * size)
    if not bool(left.any()):
        return []
    known = _listed(f"component {index} by {float(varies[index]):.2g}" for index in _where(left))
    return [
        f"observations vary so little that they count as constant ({known}): where that is more than noise, "
        "give them in smaller units"
    ]


def ended_by_time(data: Transitions, sources: Sequence[DataConfig], timeouts_end: bool) -> list[str]:
    """Return a warning if a recipe treats trajectories that ended by time limit as terminal.

    The shipped data are exempt: their task does end with its time.

    Args:
        data: the transitions.
        sources: sources of the transitions.
        timeouts_end: the recipe's setting.
    """
    cut = int((data.timeouts & ~data.terminals).sum())
    if not timeouts_end or not cut or all(source.path.startswith(PREFIX) for source in sources):
        return []
    return [
        f"timeouts_end = true: {cut} of {len(data.trajectories())} trajectories end by time alone and count "
        "as if nothing could follow, so values are too low where the task goes on: set timeouts_end = false"
    ]


def no_better_than_nothing(task: PolicyTask, advice: str) -> list[str]:
    """Return a warning if a trained policy is no better than predicting zero.

    Args:
        task: the task with the trained policy.
        advice: advice for the user.
    """
    error, nothing = task.beside_nothing()
    if error <= nothing:
        return []
    return [
        f"the finished policy's error ({error:.4g}) is above that of predicting nothing ({nothing:.4g}): "
        f"do not use it; {advice}"
    ]


def _where(mask: Tensor) -> list[int]:
    return torch.nonzero(mask).flatten().tolist()


def _listed(words: Iterable[str]) -> str:
    each = list(words)
    more = len(each) - _NAMED
    return ", ".join(each[:_NAMED]) + (f", {more} more" if more > 0 else "")
