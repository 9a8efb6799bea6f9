"""Warnings: what speaks against data before a training, and against its result after it."""

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
"""What may help where a result is no good and its observations are well scaled."""
_LEAST, _GREATEST = 0.01, 30.0
"""Networks see components between these as they are; joint velocities of simulated robots reach 10."""
_NOISE = 1e-8
"""A component that varies less is constant but for rounding."""
_ROWS = 65536
"""So many rows tell the size of a component."""
_NAMED = 3
"""So many components are named."""


def of_scale(observations: Tensor, scale: Scale, *, normalized: bool, key: str) -> list[str]:
    """Warnings about observations that a network can make nothing of.

    Args:
        observations: `[rows, width]`, as they came.
        scale: what they are brought to before networks see them.
        normalized: whether the scale was taken from them.
        key: the recipe's, which says so.
    """
    if normalized:
        return left_small(observations, scale)
    return far_from_unit(observations, scale, f"set {key} = true")


def of_base(observations: Tensor, base: DiffusionPolicy) -> list[str]:
    """A warning where a base sees observations far from those that it can make something of.

    Args:
        observations: `[rows, width]`, as they came.
        base: with the scale that it was learnt on, if it was.
    """
    if base.config.normalize:
        # What the base has seen vary may well stay the same in a few trajectories: only large is far.
        return far_from_unit(
            observations, base.scale, "give them in the units that the base was learnt with", small=False
        )
    return far_from_unit(observations, base.scale, "learn the base with policy.normalize = true")


def far_from_unit(observations: Tensor, scale: Scale, advice: str, *, small: bool = True) -> list[str]:
    """A warning where networks see observations that are far from unit scale.

    Args:
        observations: `[rows, width]`, as they came.
        scale: what they are brought to before networks see them.
        advice: what to set.
        small: whether what is too small counts as well.
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
    """A warning where normalisation takes a component for constant that is only in large units."""
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
    """A warning where a recipe says that nothing follows a record that was cut.

    The shipped data are known to be of a task that is over when its time is.

    Args:
        data: the transitions.
        sources: where they are from.
        timeouts_end: what the recipe says.
    """
    cut = int((data.timeouts & ~data.terminals).sum())
    if not timeouts_end or not cut or all(source.path.startswith(PREFIX) for source in sources):
        return []
    return [
        f"timeouts_end = true: {cut} of {len(data.trajectories())} trajectories end by time alone and count "
        "as if nothing could follow, so values are too low where the task goes on: set timeouts_end = false"
    ]


def no_better_than_nothing(task: PolicyTask, advice: str) -> list[str]:
    """A warning where a finished policy does no better than who predicts nothing.

    Args:
        task: with the trained policy.
        advice: what to set.
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
