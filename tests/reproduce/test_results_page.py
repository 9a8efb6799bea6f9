"""Markdown tables and pictures of results."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from expertise.runs.results import Row
from reproduce.common.page import dot_chart, figures, markdown_table, wins


def rows(setting: str = "a", **values: list[float]) -> list[Row]:
    return [
        Row(table="main", setting=setting, row=name, metric="bits", unit="1", seed=seed, value=value)
        for name, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]


def test_a_table_gives_means_spreads_and_the_best_in_bold() -> None:
    columns = {"A": rows(one=[1.0, 2.0], two=[3.0, 3.0]), "B": rows("b", one=[5.0])}
    assert markdown_table("row", ["two", "one", "none"], columns, digits=2) == (
        "| row | A | B |\n|---|---:|---:|\n| two | 3.00 ± 0.00 | – |\n| one | **1.50 ± 0.71** | 5.00 |\n"
    )
    # Nothing is the best of one, or of equals.
    equal = markdown_table("row", ["one", "two"], {"A": rows(one=[1.0], two=[1.0])})
    assert "*" not in equal
    assert "*" not in markdown_table("row", ["one", "two"], {"A": columns["A"]}, least=None)
    most = markdown_table("row", ["one", "two"], {"A": columns["A"]}, least=False)
    assert "| two | **3.000 ± 0.000** |" in most


def test_wins_count_the_seeds_in_which_a_row_is_below_all_others() -> None:
    found = rows(best=[1.0, 2.0, 3.0], one=[1.5, 2.5, 2.9], two=[1.1, 2.1, 3.5])
    assert wins(found, "best", ["one", "two"]) == (2, 3)
    assert wins(found, "best", ["two"]) == (3, 3)
    assert wins(found, "best", ["missing"]) == (0, 0)
    # Only seeds that have all of them count; equal is not below.
    assert wins(rows(best=[1.0, 1.0], one=[1.0]), "best", ["one"]) == (0, 1)


def test_one_seed_has_no_spread() -> None:
    assert figures(rows(one=[1.25]))["one"].text(2) == "1.25"


def test_a_picture_is_one_sound_file_that_is_the_same_every_time() -> None:
    columns = {"A & <b>": rows(one=[1.0, 2.0], two=[3.0]), "B": rows("b", two=[5.0])}
    first = dot_chart(["one", "two", "missing"], columns, "bits")
    assert first == dot_chart(["one", "two", "missing"], columns, "bits")
    drawn = ElementTree.fromstring(first)
    words = "".join(drawn.itertext())
    assert all(word in words for word in ("A & <b>", "B", "one", "two", "bits"))
    assert "missing" not in words


@pytest.mark.parametrize("digits", [1, 3])
def test_digits(digits: int) -> None:
    assert f"{1.5:.{digits}f}" in markdown_table("", ["one"], {"A": rows(one=[1.5])}, digits=digits)
