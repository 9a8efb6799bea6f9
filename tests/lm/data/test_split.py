from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expertise.lm.data.split import SHARES, assign, assign_runs, needs_sections, section_ends


def shares(sizes: list[int], sides: list[int]) -> list[float]:
    return [sum(n for n, side in zip(sizes, sides, strict=True) if side == s) / sum(sizes) for s in range(3)]


def test_shares_of_many_uneven_documents() -> None:
    random.seed(0)
    sizes = [int(random.lognormvariate(8, 1.2)) + 1 for _ in range(400)]
    sides = assign(sizes)
    assert shares(sizes, sides) == pytest.approx(SHARES, abs=0.012)
    assert not needs_sections(sizes, sides)
    # The sides get documents of all sizes: none is made of the short ones only.
    assert 0.03 < sides.count(1) / len(sides) < 0.08


def test_few_or_dominating_documents_need_sections() -> None:
    assert needs_sections([100] * 19, assign([100] * 19))
    assert not needs_sections([100] * 20, assign([100] * 20))
    lopsided = [1] * 50 + [10_000]
    assert needs_sections(lopsided, assign(lopsided))


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=60))
def test_runs_are_contiguous_and_none_is_empty(sizes: list[int]) -> None:
    sides = assign_runs(sizes)
    assert sides == sorted(sides)
    assert set(sides) == {0, 1, 2}


def test_forty_equal_sections() -> None:
    assert [assign_runs([7] * 40).count(side) for side in range(3)] == [36, 2, 2]


@given(st.text(alphabet="aé😀\n ", max_size=300), st.integers(1, 50))
def test_sections_join_to_the_text_and_tear_no_character(text: str, target: int) -> None:
    raw = text.encode()
    ends = section_ends(raw, target)
    starts = [0, *ends[:-1]]
    pieces = [raw[a:b] for a, b in zip(starts, ends, strict=True)] if ends else []
    assert b"".join(pieces) == raw
    assert "".join(piece.decode() for piece in pieces) == text
    assert all(pieces)


def test_sections_prefer_blank_lines_then_lines() -> None:
    paragraphs = ("word " * 9 + "\n\n") * 40
    cut = section_ends(paragraphs.encode(), 100)
    assert all(paragraphs[:end].endswith("\n\n") for end in cut)
    lines = ("word " * 9 + "\n") * 40
    assert all(lines[:end].endswith("\n") for end in section_ends(lines.encode(), 100))
