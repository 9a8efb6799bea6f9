"""Dividing a domain into train, validation and test: 90, 5 and 5 % of its bytes, by document.

Documents are taken in an order given by a hash of their name, and each goes to the side that is furthest
below its share of what has been given out so far (validation and test refuse one that would bring them half
a point above their share of the whole); neither a seed nor the order on disk matters. Where that
cannot work (fewer than 20 documents, a side without any, shares off by more than 2 points) the domain's large
documents are first cut, at blank lines if possible, into sections of about a fortieth of the domain. Each
section then counts as a document, and validation and test are one contiguous run of them each: so a single
file gives its first 90 % to train, the next 5 % to validation and the last 5 % to test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from expertise.errors import RecipeError, nearest

SPLITS = ("train", "validation", "test")
"""The three sides, in this order everywhere."""

HELD_OUT_SIDES = SPLITS[1:]
"""Those that a model can be looked at on."""

ALL = "all"
"""The only side of text that is not divided."""

SHARES = (0.90, 0.05, 0.05)
"""Their shares of a domain's bytes."""

SECTIONS = 40
"""A document that has to be cut gives sections of about this fraction of its domain."""

_FEWEST_DOCUMENTS = 20
_TOLERANCE = 0.02
_OVERSHOOT = 0.005


def require_split(split: str | None, *, given: bool = False) -> None:
    """Refuse a side that is not held out.

    Args:
        split: the side; None: the default.
        given: whether it is of given text, all of which can be asked for.
    """
    known = (*HELD_OUT_SIDES, ALL) if given else HELD_OUT_SIDES
    if split is not None and split not in known:
        raise RecipeError(f"no split {split!r}", nearest(split, known))


def no_side(side: str) -> RecipeError:
    """The refusal of a side that a text does not have."""
    return RecipeError(
        f"there is no {side} text: with data.validation all of data.source is trained on",
        "look at other text with --data FILE: all of it is scored",
    )


def order_key(domain: str, name: str) -> bytes:
    """What documents are sorted by: SHA-256 of domain and id, so that domains and sources are mixed."""
    return hashlib.sha256(f"{domain}\0{name}".encode("utf-8", "surrogateescape")).digest()


def assign(sizes: Sequence[int]) -> list[int]:
    """Give each document, in turn, to the side furthest below its share.

    Args:
        sizes: bytes of each document, in hash order.

    Returns:
        The index in `SPLITS` of each document's side.
    """
    have, sides, given = [0, 0, 0], [], 0
    full = (SHARES[1] + _OVERSHOOT) * sum(sizes)
    for size in sizes:
        # A document's own size must not draw it to one side, or validation would hold only short ones;
        # but one that would fill validation or test far beyond its share goes to train.
        open_sides = [side for side in range(3) if side == 0 or have[side] + size <= full]
        behind = [SHARES[side] * given - have[side] for side in open_sides]
        side = open_sides[behind.index(max(behind))]
        have[side] += size
        given += size
        sides.append(side)
    return sides


def needs_sections(sizes: Sequence[int], sides: Sequence[int]) -> bool:
    """Whether documents are too few or too uneven to be divided whole."""
    if len(sizes) < _FEWEST_DOCUMENTS:
        return True
    have = [0, 0, 0]
    for size, side in zip(sizes, sides, strict=True):
        have[side] += size
    return any(
        part == 0 or abs(part / sum(have) - share) > _TOLERANCE
        for part, share in zip(have, SHARES, strict=True)
    )


def assign_runs(sizes: Sequence[int]) -> list[int]:
    """Give the first 90 % to train, the next 5 % to validation and the rest to test, each at least one.

    Args:
        sizes: bytes of each section, in order; at least three.

    Returns:
        The index in `SPLITS` of each section's side, never decreasing.
    """
    total, before, middles = sum(sizes), 0, []
    for size in sizes:
        middles.append((before + size / 2) / total)
        before += size
    num_train = sum(middle < SHARES[0] for middle in middles)
    num_not_test = sum(middle < SHARES[0] + SHARES[1] for middle in middles)
    num_not_test = min(max(num_not_test, 2), len(sizes) - 1)
    num_train = min(max(num_train, 1), num_not_test - 1)
    return [(i >= num_train) + (i >= num_not_test) for i in range(len(sizes))]


def section_ends(text: bytes, target: int) -> list[int]:
    """Where to cut a document: about every `target` bytes, after a blank line, else a line, else a character.

    Args:
        text: UTF-8.
        target: bytes wanted per section.

    Returns:
        Offsets of the sections' ends, the last one the document's; no character is torn.
    """
    ends: list[int] = []
    start = 0
    while len(text) - start > 1.5 * target:
        ideal = start + target
        end = max(nice_end(text, start + (target + 1) // 2, ideal + target // 2, ideal), start + 1)
        while end < len(text) and text[end] & 0xC0 == 0x80:
            end += 1
        ends.append(end)
        start = end
    if start < len(text):
        ends.append(len(text))
    return ends


def nice_end(text: bytes, low: int, high: int, ideal: int) -> int:
    """Where to cut in [low, high]: after a blank line, else after a line, else about `ideal`."""
    for mark in (b"\n\n", b"\n"):
        after = text.find(mark, max(ideal - len(mark), low), high)
        before = text.rfind(mark, low, ideal)
        ends = [at + len(mark) for at in (before, after) if at >= 0 and at + len(mark) <= high]
        if ends:
            return min(ends, key=lambda end: abs(end - ideal))
    end = ideal
    while end > low and end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return end
