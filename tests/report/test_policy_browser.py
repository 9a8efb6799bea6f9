"""The page of policies in a real browser: no network, everything drawn, nothing sticks out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, overflow
from policy_records import ODD, record

from expertise.report.policy import render
from expertise.report.records import PolicyRecord, from_json


@pytest.fixture
def visit(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Opens the page of a record."""

    def go(made: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        path = tmp_path / "policy.html"
        path.write_text(render(from_json(PolicyRecord, made)), encoding="utf-8")
        return open_page(path, *arguments, **options)

    return go


@pytest.mark.parametrize(("size", "mode"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_everything_is_drawn_and_nothing_sticks_out(visit: Any, size: dict[str, int], mode: str) -> None:
    page = visit(record(), size, mode)
    boxes = page.evaluate(
        """[...document.querySelectorAll('figure, svg, .frames img, .intervals b')].map(
            (each) => { const box = each.getBoundingClientRect(); return [box.width, box.height]; })"""
    )
    assert len(boxes) > 4 + 6 + 8 + 6
    assert [box for box in boxes if box[0] < 1 or box[1] < 1] == []
    assert overflow(page) <= 0
    widths = page.evaluate("[...document.querySelectorAll('.frames img')].map((each) => each.naturalWidth)")
    assert widths == [32] * 8
    # The strip stands above the line, edge to edge, however narrow the window is.
    edges = page.evaluate(
        """['.frames', '.timeline'].map((name) => document.querySelector(name).getBoundingClientRect())
            .map((box) => [box.left, box.right])"""
    )
    assert edges[0] == pytest.approx(edges[1], abs=6)


@pytest.mark.parametrize("case", sorted(ODD))
def test_odd_pages_fit_a_phone(visit: Any, case: str) -> None:
    page = visit(ODD[case](), PHONE, "dark")
    assert overflow(page) <= 0
    assert page.locator("h1").is_visible()
