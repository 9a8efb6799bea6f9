"""Recorded actions in the units of policies: from the bounds of their space to [-1, 1]."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.checks import ROUNDING
from expertise.shapes import Float

KEYS = "action_low and action_high of its [[data]] table"
"""Where a user says what the bounds are."""

_UNBOUNDED = 1e30
"""Bounds from here on stand for none: some spaces have the greatest number of their type."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Between which numbers each component of an action lies."""

    low: Float[np.ndarray, " components"]
    high: Float[np.ndarray, " components"]

    @classmethod
    def of(cls, low: Any, high: Any) -> Bounds | None:
        """The bounds that a file declares; None where no component has any, or they are no numbers.

        A single component stands for all of them.
        """
        try:
            ends = np.broadcast_arrays(*(np.ravel(np.asarray(end, np.float64)) for end in (low, high)))
        except (TypeError, ValueError):
            return None
        return None if all((np.abs(end) >= _UNBOUNDED).all() for end in ends) else cls(*ends)

    def require_usable(self, where: str) -> None:
        """Refuse bounds that actions cannot be scaled by.

        Args:
            where: the file that declares them, for messages.

        Raises:
            DataError: a component has none, or its lower one is not below the upper one.
        """
        # A component with nothing between its bounds is allowed: it says nothing.
        usable = (self.low <= self.high) & (np.abs(self.low) < _UNBOUNDED) & (np.abs(self.high) < _UNBOUNDED)
        if not usable.all():
            component = int(np.flatnonzero(~usable)[0])
            raise DataError(
                f"{where} declares bounds of its actions that cannot be used: component {component} "
                f"from {self.low[component]:g} to {self.high[component]:g}",
                f"set {KEYS}",
            )

    def spread(self, width: int, what: str, where: str) -> Bounds:
        """The same, for each component of actions of a width.

        Args:
            width: of an action.
            what: what they are called in messages.
            where: the file, for messages.

        Raises:
            DataError: they are for actions of another width.
        """
        if len(self.low) not in (1, width):
            raise DataError(f"{where}: {what} are for actions of width {len(self.low)}, these have {width}")
        return Bounds(*(np.broadcast_to(end, width) for end in (self.low, self.high)))

    def scaled(self, actions: Float[np.ndarray, "rows components"]) -> Float[np.ndarray, "rows components"]:
        """Actions as shares of the bounds, -1 at the lower and 1 at the upper one, float64.

        An environment of ours multiplies by the same numbers, so what was recorded is what is done again.
        """
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        # A component with nothing between its bounds says nothing.
        shares: np.ndarray = (actions.astype(np.float64) - middle) / np.where(half > 0, half, 1.0)
        return shares

    def unscaled(self, shares: Float[np.ndarray, "rows components"]) -> Float[np.ndarray, "rows components"]:
        """Actions in [-1, 1] in the units of the bounds, float32: the inverse of `scaled`."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        found: np.ndarray = np.clip(middle + half * shares.astype(np.float64), self.low, self.high)
        return found.astype(np.float32)

    def __str__(self) -> str:
        """As short as they can be said."""
        low, high = sorted(set(self.low.tolist())), sorted(set(self.high.tolist()))
        if len(low) == len(high) == 1:
            return f"[{low[0]:g}, {high[0]:g}]"
        return f"[{low[0]:g} … {low[-1]:g}, {high[0]:g} … {high[-1]:g}]"


def in_units(
    actions: Float[np.ndarray, "rows components"], bounds: Bounds, whose: str, *, clip: bool, where: str
) -> tuple[Float[np.ndarray, "rows components"], int]:
    """Actions in [-1, 1], float32, and how many rows had one that was cut to the bounds.

    Args:
        actions: as they were recorded, finite.
        bounds: for each component.
        whose: who says so, for messages.
        clip: cut what lies outside, instead of refusing it.
        where: the file, for messages.

    Raises:
        DataError: an action lies outside.
    """
    scaled = bounds.scaled(actions)
    outside = (np.abs(scaled) > 1 + ROUNDING).any(1)
    if outside.any() and not clip:
        row = int(np.abs(scaled).max(1).argmax())
        component = int(np.abs(scaled[row]).argmax())
        raise DataError(
            f"{where}: 'actions' reach {actions[row, component]:g} in row {row}; they must lie in {bounds} "
            f"({whose})",
            f"other bounds: set {KEYS} (a number or a list each), which scales them",
            'a few strays: set actions = "clip" there, which cuts them to the bounds',
        )
    return np.clip(scaled, -1.0, 1.0).astype(np.float32), int(outside.sum())


def assumed(low: Float[np.ndarray, " components"], high: Float[np.ndarray, " components"], where: str) -> str:
    """What to say of a file that declares no bounds: [-1, 1] is assumed.

    Args:
        low: the least of each component in the file.
        high: the greatest.
        where: the file.
    """
    if (low >= 0).all() and (high <= 1).all():
        return (
            f"warning: all actions of {where} lie in [0, 1], and it declares no bounds: [-1, 1] is assumed; "
            f"if they go from 0 to 1, set {KEYS} to 0 and 1"
        )
    switches = [int(i) for i in np.flatnonzero((low >= 0) & (low <= 0.1) & (high >= 0.9) & (high <= 1))]
    if switches:
        return (
            f"warning: component {', '.join(map(str, switches))} of the actions of {where} goes from 0 to 1, "
            f"and the file declares no bounds: [-1, 1] is assumed; if that is wrong, set {KEYS}, as lists"
        )
    return (
        f"note: {where} declares no bounds of its actions, which go from {low.min():g} to {high.max():g}: "
        f"[-1, 1] is assumed; for other bounds set {KEYS}"
    )
