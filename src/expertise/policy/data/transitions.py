"""Recorded data: transitions in rows, one trajectory after another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from expertise.errors import DataError
from expertise.policy.batch import Rows
from expertise.shapes import Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transitions(Rows[np.ndarray]):
    """Recorded transitions as NumPy arrays; rows of a trajectory stand together, in their order.

    Readers and `checked` hold arrays against these rules; whoever builds one by hand keeps them.
    """

    terminals: Bool[np.ndarray, " rows"]
    """Nothing could follow."""
    timeouts: Bool[np.ndarray, " rows"]
    """The record was cut here, though more could have come."""
    notes: tuple[str, ...] = ()
    """What a human should know of how they were read, a line each; they go along with what is selected."""

    def trajectories(self) -> list[slice]:
        """The rows of each trajectory: cut after terminals, timeouts and the last row."""
        return cuts_of(self.terminals | self.timeouts)

    def returns(self) -> Float[np.ndarray, " trajectories"]:
        """Sum of rewards of each trajectory, float64."""
        return np.array([self.rewards[rows].sum(dtype=np.float64) for rows in self.trajectories()])

    def episode_costs(self) -> Float[np.ndarray, " trajectories"]:
        """Sum of costs of each trajectory, float64.

        Raises:
            DataError: the data have no costs.
        """
        if self.costs is None:
            raise DataError("these data have no costs", "leave max_cost out where it was asked for")
        return np.array([self.costs[rows].sum(dtype=np.float64) for rows in self.trajectories()])

    def select(self, rows: slice | Int[np.ndarray, " chosen"] | Bool[np.ndarray, " rows"]) -> Transitions:
        """Some rows, in the order given; trajectories are as whole as the choice leaves them."""
        return Transitions(**{name: array[rows] for name, array in self.arrays().items()}, notes=self.notes)

    def take(self, trajectories: Iterable[int]) -> Transitions:
        """Whole trajectories, by their numbers, in the order given.

        Raises:
            DataError: there is no trajectory of such a number, or none is chosen.
        """
        cuts, chosen = self.trajectories(), list(trajectories)
        for number in chosen:
            if not 0 <= number < len(cuts):
                raise DataError(f"no trajectory {number}: these data have {len(cuts)}, counted from 0")
        return concatenate([self.select(cuts[number]) for number in chosen])

    def first(self, number: int) -> Transitions:
        """The first so many trajectories.

        Raises:
            DataError: there are fewer.
        """
        if number > len(self.trajectories()):
            raise DataError(f"{number} trajectories are wanted, these data have {len(self.trajectories())}")
        return self.take(range(number))

    def split(self, fraction: float, seed: int) -> tuple[Transitions, Transitions]:
        """Two sets of whole trajectories, drawn by seed: the second has `fraction` of them, at least one.

        Raises:
            DataError: there are fewer than two trajectories.
        """
        number = len(self.trajectories())
        if number < 2:
            raise DataError(f"cannot split {number} trajectories in two")
        order = np.random.default_rng(seed).permutation(number).tolist()
        held_out = min(number - 1, max(1, round(fraction * number)))
        return self.take(sorted(order[held_out:])), self.take(sorted(order[:held_out]))

    def shuffled(self, seed: int) -> Transitions:
        """Whole trajectories in an order drawn by seed, so that the first n are a fair choice of n."""
        return self.take(np.random.default_rng(seed).permutation(len(self.trajectories())).tolist())

    def without_costs(self) -> Transitions:
        """The same without costs."""
        return dataclasses.replace(self, costs=None)

    def rounded(self, bits: int) -> Transitions:
        """Every number to the nearest of those whose mantissa has so many bits; float32 itself has 23."""
        drop = 23 - bits
        if drop <= 0:
            return self
        half, mask = np.uint32(1 << (drop - 1)), np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
        arrays = self.arrays()
        for name, array in arrays.items():
            if array.dtype == np.float32:
                # A carry goes on into the exponent, which is what rounding up to the next power of 2 is.
                arrays[name] = ((array.view(np.uint32) + half) & mask).view(np.float32)
        return Transitions(**arrays, notes=self.notes)


def concatenate(parts: Sequence[Transitions]) -> Transitions:
    """One after another; what was cut stays cut, for the last row of each ends a trajectory.

    Raises:
        DataError: there is none, widths differ, or only some have costs.
    """
    if not parts:
        raise DataError("there are no data to put together")
    first = parts[0]
    for part in parts[1:]:
        for name in ("observations", "actions"):
            width, other = getattr(first, name).shape[1], getattr(part, name).shape[1]
            if width != other:
                raise DataError(f"data with {name} of width {width} and {other} do not go together")
        if (first.costs is None) != (part.costs is None):
            raise DataError(
                "data with costs and data without do not go together", "drop them with without_costs()"
            )
    rows = [part.arrays() for part in parts]
    joined = {name: np.concatenate([arrays[name] for arrays in rows]) for name in rows[0]}
    # A part may end amid a trajectory; what follows it is another one.
    last = np.cumsum([len(part) for part in parts]) - 1
    last = last[last >= 0]
    joined["timeouts"][last] |= ~joined["terminals"][last]
    notes = dict.fromkeys(note for part in parts for note in part.notes)
    return Transitions(**joined, notes=tuple(notes))


def cuts_of(ends: Bool[np.ndarray, " rows"]) -> list[slice]:
    """The rows of each trajectory: cut after each row that ends one, and after the last."""
    cuts = np.unique(np.concatenate([[0], np.flatnonzero(ends) + 1, [len(ends)]]))
    return [slice(int(start), int(end)) for start, end in itertools.pairwise(cuts)]
