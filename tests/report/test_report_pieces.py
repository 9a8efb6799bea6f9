"""Numbers, tokens and palettes: what the page is made of."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import expertise.report
from expertise.report.colours import NUM_STEPS, count_scale, ratio_step, signed_scale, value_scale
from expertise.report.line_charts import Line, _spread_labels, line_chart, smooth, thin
from expertise.report.text import compact, duration, listing, pieces, plain, signed, whole


def test_numbers_are_written_for_readers() -> None:
    assert [compact(n) for n in (0, 12, 999, 1000, 999_600, 1_024_000, 3.2e9)] == [
        "0",
        "12",
        "999",
        "1.00\u00a0k",
        "1.00\u00a0M",
        "1.02\u00a0M",
        "3.20\u00a0G",
    ]
    assert whole(1234567.4) == "1,234,567"
    assert [duration(s) for s in (5, 131, 12000)] == [
        "5\u00a0s",
        "2\u00a0min 11\u00a0s",
        "3\u00a0h 20\u00a0min",
    ]
    assert listing(["a", "b", "c"]) == "a, b and c"


def test_signed_numbers_have_a_true_minus_and_no_negative_nought() -> None:
    assert [signed(v) for v in (0.7, -0.3, -0.001, 0.0, None)] == ["0.70", "−0.30", "0.00", "0.00", "–"]


@given(st.lists(st.floats(-5, 5), max_size=12))
def test_signed_classes_are_symmetric_and_the_middle_is_nought(values: list[float]) -> None:
    scale = signed_scale(values)
    assert scale.step(0.0) == 4
    assert len(scale.steps) == len(scale.labels) == len(scale.edges) + 1
    for value in values:
        step = scale.step(value)
        assert 0 <= step <= 8
        assert (step >= 4) if value >= 0 else (step <= 4)
        assert abs(step - 4) <= abs(signed_scale([*values, -value]).step(value) - 4)
    most = max(map(abs, values), default=0.0)
    if most > 0.5:
        assert {scale.step(value) for value in values if abs(value) == most} <= {0, 8}


def test_tokens_show_what_cannot_be_seen() -> None:
    assert plain("a b\n\tc") == "a·b↵⇥c"
    assert plain("\udcc3") == "\\xc3"
    assert plain("") == "∅"
    assert [piece.line_break for piece in pieces("a\n")] == [False, True]
    assert plain("né 中") == "né·中"


@given(st.text())
def test_pieces_are_writable_and_seen(token: str) -> None:
    text = "".join(piece.text for piece in pieces(token))
    text.encode("utf-8")
    assert not re.search(r"[\x00-\x1f\x7f\u202a-\u202e]", text)


@pytest.mark.parametrize("largest", [1, 2, 3, 6, 8, 9, 12, 32, 64, 256])
def test_counts_have_classes_that_ascend_and_cover(largest: int) -> None:
    scale = count_scale(largest)
    steps = [scale.step(float(count)) for count in range(1, largest + 1)]
    assert steps == sorted(steps)
    assert 0 <= steps[0] <= steps[-1] < NUM_STEPS
    assert len(set(scale.steps)) == len(scale.steps) == len(scale.labels) == len(scale.edges) + 1
    assert scale.labels[0].startswith("1")
    assert scale.labels[-1].endswith(str(largest))


@given(st.lists(st.floats(0, 100), max_size=20))
def test_values_have_classes_that_hold_them(values: list[float]) -> None:
    scale = value_scale(values)
    assert len(scale.steps) == len(scale.labels) == len(scale.edges) + 1
    for value in values:
        low, high = (float(word) for word in scale.labels[scale.index(value)].split("–"))
        assert low - 0.051 <= value <= high + 0.051


def test_ratios_are_symmetric_around_one() -> None:
    assert ratio_step(1.0) == 4
    assert [ratio_step(2.0**k) + ratio_step(2.0**-k) for k in (1, 1.5, 3)] == [8, 8, 8]
    assert (ratio_step(0.0), ratio_step(100.0)) == (0, 8)


def test_thinning_keeps_the_end_and_smoothing_the_level() -> None:
    x, y = thin([float(v) for v in range(1000)], [float(v) for v in range(1000)], 100)
    assert len(x) <= 100
    assert (x[-1], y[-1]) == (999, 999)
    assert smooth([2.0] * 10, 4) == [2.0] * 10


def test_labels_are_moved_apart() -> None:
    placed = _spread_labels([10.0, 11.0, 9.0, 100.0], 14.0, 0.0, 100.0)
    ordered = sorted(placed)
    assert all(b - a >= 14 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert placed[2] < placed[0] < placed[1] < placed[3] <= 100


def test_charts_are_repeatable_and_leave_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    lines = [Line(x=[0.0, 1.0, 2.0], y=[3.0, 2.0, 1.0], label="a $ < b")]
    first = line_chart("one", 'said "<so>"', lines)
    assert first == line_chart("one", 'said "<so>"', lines)
    assert dict(mpl.rcParams) == before
    assert 'aria-label="said &#34;&lt;so&gt;&#34;"' in first or "said &quot;&lt;so&gt;&quot;" in first
    assert "a $ &lt; b" in first


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_legible_in_both_modes() -> None:
    style = (Path(expertise.report.__file__).parent / "templates" / "style.css").read_text()
    modes = re.findall(r":root \{(.*?)\n *\}", style, re.S)
    assert len(modes) == 2
    for mode in modes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", mode))
        for text in ("ink", "muted", "accent", *(f"y{i}" for i in range(8))):
            assert _contrast(colours[text], colours["bg"]) >= 4.5, text
        assert _contrast(colours["muted"], colours["raised"]) >= 4.5
        for i in range(8):
            assert _contrast(colours[f"s{i}"], colours[f"t{i}"]) >= 4.5, i
            assert _contrast(colours[f"k{i}"], colours["bg"]) >= 3.0, i
        for i in range(9):
            assert _contrast(colours[f"d{i}"], colours[f"e{i}"]) >= 4.5, i
        light = [_luminance(colours[f"s{i}"]) for i in range(8)]
        assert light in (sorted(light), sorted(light, reverse=True))
        around = [_contrast(colours[f"d{i}"], colours["d4"]) for i in range(9)]
        assert around[:5] == sorted(around[:5], reverse=True)
        assert around[4:] == sorted(around[4:])


def test_tokens_have_their_names_where_ids_have_gaps() -> None:
    import tokenizers

    from expertise.report.text import vocabulary

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 2, "far": 147}, unk_token="a"))
    shown = vocabulary(made, 150)
    assert (shown[0], shown[1], shown[2], shown[147], shown[149]) == ("a", "<1>", "b", "far", "<149>")
    assert vocabulary(made, 2) == ["a", "<1>"]
    assert vocabulary(None, 2) == ["<0>", "<1>"]
