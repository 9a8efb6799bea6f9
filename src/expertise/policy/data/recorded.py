"""From what a reader found in a file to `Transitions`: the same way for every layout."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.actions import Bounds, assumed, in_units
from expertise.policy.data.checks import require, require_finite, structured
from expertise.policy.data.flatten import Layout, flattened
from expertise.policy.data.transitions import Transitions, cuts_of

if TYPE_CHECKING:
    from expertise.policy.data.read import DataConfig

SKIPPED = 0.1
"""Share of the episodes that `on_bad = "skip"` leaves out at most; a single one it leaves out always."""

Episode = tuple[str, Mapping[str, Any] | DataError]
"""What an episode is called in messages, and its arrays, or why it cannot be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a reader found, not checked yet.

    Arrays are those of `Transitions`, with actions as they were recorded. Observations and next observations
    may be in parts, by name; next observations and costs may be absent.
    """

    where: str
    """The file, for messages."""
    episodes: Sequence[Episode]
    """One after another; or one entry with the rows of all."""
    whole: bool = False
    """The one entry holds all episodes, and its flags say where each ends."""
    bounds: Bounds | None = None
    """Of the action space, where the file declares them."""
    notes: tuple[str, ...] = ()
    """What should be said about the file."""

    def transitions(self, config: DataConfig) -> Transitions:
        """The transitions that are asked for, in the units of policies.

        Args:
            config: what to do with actions, with broken episodes and with observations in parts, and which
                trajectories are wanted.

        Raises:
            DataError: an array is missing or not as it should be, actions lie outside their bounds, more
                episodes are broken than may be skipped, or there are fewer trajectories than are wanted.
        """
        notes = list(self.notes)
        found, broken, layout = self._structured(config)
        if not found:
            raise self._too_much(broken, 0)
        bounds, whose = self._bounds(config, found[0][1]["actions"].shape[1])
        if not whose:
            notes.append(assumed(*_range(found), self.where))
            whose = "the file declares no bounds"
        kept: list[dict[str, np.ndarray]] = []
        cut = 0
        for name, arrays in found:
            try:
                require_finite(arrays, name)
                actions, outside = in_units(
                    arrays["actions"], bounds, whose, clip=config.actions == "clip", where=name
                )
            except DataError as error:
                _pass_over(error, config, broken)
                continue
            kept.append({**arrays, "actions": actions})
            cut += outside
        if not kept or len(broken) > max(1, int(SKIPPED * (len(broken) + len(kept)))):
            raise self._too_much(broken, len(kept))
        if broken:
            notes.append(
                f"note: {len(broken)} of {len(broken) + len(kept)} episodes of {self.where} are broken and "
                f"left out; the first: {broken[0].message}"
            )
        if cut:
            rows = sum(len(arrays["actions"]) for arrays in kept)
            notes.append(
                f"note: {cut:,} of {rows:,} actions of {self.where} lay outside {bounds} and were cut to it"
            )
        if layout:
            parts = ", ".join(f"{name} ({width})" for name, width in layout)
            notes.append(f"note: observations of {self.where} are put end to end, in this order: {parts}")
        joined: dict[str, Any] = {key: np.concatenate([arrays[key] for arrays in kept]) for key in kept[0]}
        has_next = "next_observations" in joined
        joined.setdefault("next_observations", joined["observations"])
        # Returns and costs are those of whole trajectories, with the rows that are left out after this.
        data = config.within(Transitions(**joined, notes=()))
        if not has_next:
            rows = len(data)
            data = _with_next(data, self.where)
            note = f"note: no next observations in {self.where}: each is that of the row after"
            if len(data) < rows:
                note += f"; {rows - len(data):,} last rows of trajectories, which have none, are left out"
            notes.append(note)
        return config.drawn(dataclasses.replace(data, notes=tuple(notes)))

    def _structured(
        self, config: DataConfig
    ) -> tuple[list[tuple[str, dict[str, np.ndarray]]], list[DataError], Layout]:
        """Episodes whose arrays have the right types and shapes, the others, the parts of observations."""
        found: list[tuple[str, dict[str, np.ndarray]]] = []
        broken: list[DataError] = []
        layouts: list[Layout] = []
        for name, arrays in self.episodes:
            try:
                if isinstance(arrays, DataError):
                    raise arrays
                plain, layout = _plain(arrays, config, name)
                found.append((name, structured(plain, name)))
                layouts.append(layout)
            except DataError as error:
                # Of rows in one piece nothing is left when a column is wrong.
                if self.whole:
                    raise
                _pass_over(error, config, broken)
        if not found:
            return found, broken, ()
        kinds = [(_kind(arrays), layout) for (_, arrays), layout in zip(found, layouts, strict=True)]
        usual = Counter(kinds).most_common(1)[0][0]
        alike = []
        for entry, kind in zip(found, kinds, strict=True):
            if kind == usual:
                alike.append(entry)
            else:
                _pass_over(DataError(f"{entry[0]}: {_difference(kind, usual)}"), config, broken)
        if self.whole and config.on_bad == "skip":
            alike = list(_apart(*alike[0]))
        return alike, broken, usual[1]

    def _bounds(self, config: DataConfig, width: int) -> tuple[Bounds, str]:
        """The bounds of the actions, and who says so, if anybody does; a user is believed before a file."""
        if config.action_low is not None:
            own = Bounds.of(config.action_low, config.action_high)
            assert own is not None, "DataConfig has looked at them"
            whose = "action_low and action_high"
            return own.spread(width, whose, self.where), whose
        if self.bounds is not None:
            self.bounds.require_usable(self.where)
            return self.bounds.spread(width, "the bounds that it declares", self.where), "declared there"
        return Bounds(np.full(width, -1.0), np.full(width, 1.0)), ""

    def _too_much(self, broken: list[DataError], kept: int) -> DataError:
        """The refusal of data of which more is broken than may be skipped, or of which nothing is left."""
        if not broken:
            return DataError(f"{self.where} has no episodes")
        return DataError(
            f"{len(broken)} of {len(broken) + kept} episodes of {self.where} are broken; "
            f'on_bad = "skip" leaves out one, or up to {SKIPPED:.0%}',
            f"the first: {broken[0].message}",
            *broken[0].hints,
        )


def _pass_over(error: DataError, config: DataConfig, broken: list[DataError]) -> None:
    """Note a broken episode, or stop at it."""
    if config.on_bad != "skip":
        skip = 'on_bad = "skip" in its [[data]] table leaves broken episodes out, and counts them'
        raise DataError(error.message, *(error.hints or (skip,)))
    broken.append(error)


def _plain(arrays: Mapping[str, Any], config: DataConfig, where: str) -> tuple[dict[str, Any], Layout]:
    """Arrays with observations in one piece, and the parts that these are made of."""
    require(arrays, "observations", where)
    plain, layout = dict(arrays), {}
    for key in ("observations", "next_observations"):
        if key in arrays:
            plain[key], layout[key] = flattened(arrays[key], config.observation_keys, key, where)
    if layout.get("next_observations", layout["observations"]) != layout["observations"]:
        raise DataError(f"{where}: 'observations' and 'next_observations' have different parts")
    return plain, layout["observations"]


def _kind(arrays: Mapping[str, np.ndarray]) -> tuple[tuple[str, int], ...]:
    """Which arrays there are, and how wide."""
    return tuple(sorted((key, array.shape[1] if array.ndim == 2 else 1) for key, array in arrays.items()))


def _difference(kind: tuple[Any, Layout], usual: tuple[Any, Layout]) -> str:
    """What an episode has that the others have not, or the other way round."""
    own, others = dict(kind[0]), dict(usual[0])
    for key in sorted({*own, *others}):
        if key not in own:
            return f"{key!r} is missing, others have it"
        if key not in others:
            return f"{key!r} is there, others have none"
        if own[key] != others[key]:
            return f"{key!r} are {own[key]} wide, those of others {others[key]}"
    return "observations have other parts than those of others"


def _apart(where: str, arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The episodes of rows in one piece."""
    for number, rows in enumerate(cuts_of(arrays["terminals"] | arrays["timeouts"])):
        yield f"{where}, episode {number}", {key: array[rows] for key, array in arrays.items()}


def _range(found: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest of each component of the actions, without what is not finite."""
    low, high = [], []
    for _, arrays in found:
        finite = np.isfinite(arrays["actions"])
        low.append(np.where(finite, arrays["actions"], np.inf).min(0))
        high.append(np.where(finite, arrays["actions"], -np.inf).max(0))
    return np.min(low, 0), np.max(high, 0)


def _with_next(whole: Transitions, where: str) -> Transitions:
    """Fill in next observations from the row after, and leave out the rows that have none."""
    following = np.concatenate([whole.observations[1:], whole.observations[-1:]])
    following[whole.terminals] = whole.observations[whole.terminals]
    without = np.append(whole.timeouts[:-1], True) & ~whole.terminals
    kept = np.flatnonzero(~without)
    if not len(kept):
        raise DataError(
            f"{where}: no row has a next one: each trajectory is a single row",
            "add 'next_observations', or call the ends 'terminals' where nothing could follow",
        )
    # The row before one that is left out now ends its trajectory.
    timeouts = (whole.timeouts | np.append(without[1:], False)) & ~whole.terminals
    arrays = {**whole.arrays(), "next_observations": following, "timeouts": timeouts}
    return Transitions(**{name: array[kept] for name, array in arrays.items()})
