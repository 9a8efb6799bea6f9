"""Whole documents packed into windows, each attended to by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from expertise.errors import DataError, counted
from expertise.lm.data.batches import (
    CONTEXT_KEYS,
    IGNORED,
    OTHER_TOKENIZER,
    PADDING,
    Batch,
    ContextKeys,
    Windows,
    smaller,
)
from expertise.lm.data.streams import TokenStream
from expertise.shapes import Int


class PackedBatches(Windows):
    """Windows of whole documents, each document once per epoch.

    A document of n tokens takes n + 1 places: the end of text before it goes in, the one after it is its last
    target. Text that is longer than a window is cut into pieces, each by itself; of a record only what fits
    is kept, because the rest would stand without its prompt. A record with nothing left to learn is left out.

    Which documents share a window is chosen once, by size and seed (`best_fit`); the order of the windows is
    drawn anew for each epoch.

    Args:
        stream: the tokens.
        context: tokens per window.
        batch_size: windows per batch.
        seed: of the packing and of the permutations, 0 or more.
        keys: what sets `context`, for the error.

    Raises:
        DataError: there are fewer windows than one batch needs.
    """

    def __init__(
        self,
        stream: TokenStream,
        context: int,
        batch_size: int,
        seed: int,
        keys: ContextKeys = CONTEXT_KEYS,
    ) -> None:
        self.stream, self.context = stream, context
        self.num_cut = self.num_cut_tokens = self.num_left_out = 0
        self._pieces = self._cut()
        sizes = self._pieces[:, 1]
        order = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))
        windows = best_fit(sizes[order], context)
        self._windows = [order[window] for window in windows]
        if len(windows) < batch_size:
            raise DataError(
                f"the training documents fill {counted(len(windows), 'window')}, "
                f"but one batch needs {batch_size:,}",
                *self._hints(len(windows), batch_size, keys),
            )
        super().__init__(len(windows), batch_size, seed)

    def read(self, windows: Int[np.ndarray, " batch"]) -> Batch:
        """These windows, in this order; places that are left over hold ends of text that count nowhere."""
        shape = (len(windows), self.context)
        tokens = np.full(shape, self.stream.tokens[0], dtype=np.int64)
        targets, domains, documents = (np.full(shape, fill) for fill in (IGNORED, PADDING, PADDING))
        ends = self.stream.ends()
        for row, window in enumerate(windows):
            at = 0
            for number, piece in enumerate(self._windows[window]):
                start, size, owner = (int(value) for value in self._pieces[piece])
                place = np.s_[row, at : at + size]
                tokens[place] = self.stream.tokens[start : start + size]
                targets[place] = self._targets(start, size, int(ends[owner]))
                domains[place], documents[place] = self.stream.domain_ids[owner], number
                at += size
        return Batch(*(torch.from_numpy(table) for table in (tokens, targets, domains, documents)))

    def notes(self) -> list[str]:
        """How many records did not fit the context, and how full the windows are."""
        records, notes = len(self.stream.starts), []
        if self.num_cut:
            notes.append(
                f"{self.num_cut:,} of {records:,} training records are cut: "
                f"they are longer than the context of {self.context} tokens "
                f"({self.num_cut_tokens:,} tokens left out)"
            )
        if self.num_left_out:
            notes.append(
                f"{self.num_left_out:,} of {records:,} training records are left out: "
                f"they have nothing to learn within {self.context} tokens"
            )
        full = self._pieces[:, 1].sum() / (self.num_windows * self.context)
        notes.append(
            f"{counted(len(self._pieces), 'document')} in {counted(self.num_windows, 'window')}, "
            f"{100 * full:.1f} % full"
        )
        return notes

    def _hints(self, windows: int, batch_size: int, keys: ContextKeys) -> list[str]:
        """What to do where documents fill too few windows: a lower context would only leave more of them out
        where that is why there are so few."""
        if not len(self.stream.starts):
            return [OTHER_TOKENIZER]
        if not self.num_left_out:
            return [smaller(windows, batch_size, self.context, keys.lower, "add documents")]
        records = len(self.stream.starts)
        why = (
            f"{self.num_left_out:,} of {records:,} training records are left out: what comes before their "
            f"answers fills the context of {self.context} tokens"
        )
        ways = [f"raise {keys.higher}"] if keys.higher else []
        ways += [f"lower train.batch_size ({batch_size}) to {windows} or less"] if windows else []
        return [why, ", or ".join([*ways, "give records with shorter prompts"])]

    def _cut(self) -> Int[np.ndarray, "pieces 3"]:
        """Start in the stream, size and document of each piece."""
        context, learnt = self.context, self.stream.learnt
        pieces = []
        for owner, (start, end) in enumerate(zip(self.stream.starts, self.stream.ends(), strict=True)):
            if learnt is None:
                pieces += [(at, min(context, end - at), owner) for at in range(int(start), int(end), context)]
                continue
            # The token after the first `context` may still be a target.
            some = bool(learnt[start + 1 : min(end, start + context + 1)].any())
            if some and end - start > context:
                self.num_cut += 1
                self.num_cut_tokens += int(end - start) - context
            self.num_left_out += not some
            if some:
                pieces.append((int(start), int(min(context, end - start)), owner))
        return np.array(pieces, dtype=np.int64).reshape(-1, 3)

    def _targets(self, start: int, size: int, end: int) -> Int[np.ndarray, " size"]:
        """The next token of each of a piece's, or `IGNORED`; after a document comes an end of text."""
        after = np.arange(start + 1, start + size + 1)
        # An end of text is learnt where the token before it is.
        last = np.minimum(after, end - 1)
        targets = np.where(after < end, self.stream.tokens[last], self.stream.tokens[0]).astype(np.int64)
        if self.stream.learnt is not None:
            targets[~self.stream.learnt[last]] = IGNORED
        return targets


def best_fit(sizes: Sequence[int] | Int[np.ndarray, " documents"], capacity: int) -> list[list[int]]:
    """Pack sizes into as few windows as a simple rule can: the longest first, each where it fits best.

    Args:
        sizes: of the documents, 1 to capacity each.
        capacity: of a window.

    Returns:
        For each window the indices of its documents. Among equal sizes the first comes first.
    """
    windows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r: some window has room r
    for index in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size = int(sizes[index])
        larger = rooms >> size
        if larger:
            room = size + (larger & -larger).bit_length() - 1
            window = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, window = capacity, len(windows)
            windows.append([])
        windows[window].append(index)
        if room > size:
            with_room[room - size].append(window)
            rooms |= 1 << (room - size)
    return windows
