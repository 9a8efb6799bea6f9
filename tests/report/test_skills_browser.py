"""The page of skills in a real browser: no network, everything drawn, weights under the pointer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, overflow
from skills_records import ODD, SKILLS, record

from expertise.report.records import SkillsRecord, from_json
from expertise.report.skills import render


@pytest.fixture
def visit(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Opens the page of a record."""

    def go(made: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        path = tmp_path / "skills.html"
        path.write_text(render(from_json(SkillsRecord, made)), encoding="utf-8")
        return open_page(path, *arguments, **options)

    return go


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everything_is_drawn_and_nothing_sticks_out(visit: Any, size: dict[str, int], mode: str) -> None:
    page = visit(record(), size, mode)
    boxes = page.evaluate(
        """[...document.querySelectorAll('figure, svg.chart, .heatcells td, .passage:not([hidden]) .t')].map(
            (each) => { const box = each.getBoundingClientRect(); return [box.width, box.height]; })"""
    )
    assert len(boxes) > 4 + 4 + 42 + 20 + 160
    assert [box for box in boxes if box[0] < 1] == []
    assert overflow(page) <= 0
    assert page.locator("svg.chart").count() == len(SKILLS)


@pytest.mark.parametrize("case", sorted(ODD))
def test_odd_pages_fit_a_phone(visit: Any, case: str) -> None:
    page = visit(ODD[case](), PHONE, "dark")
    assert overflow(page) <= 0
    assert page.locator("h1").is_visible()


def _panel(page: Any) -> list[str]:
    return page.locator(".panel li").all_text_contents()


def _weights(token: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {value:.2f}".replace("-", "−") for name, value in zip(SKILLS, token["alpha"], strict=True)
    ]


def test_pointer_and_keys_name_the_weights_of_a_token(visit: Any) -> None:
    tokens = record()["passages"][0]["tokens"]
    page = visit(record(), DESKTOP)
    shown = page.locator(".passage:not([hidden]) .t")
    shown.nth(9).hover()
    assert _panel(page) == _weights(tokens[9])
    shown.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert _panel(page) == _weights(tokens[1])


def test_a_skill_and_a_text_can_be_chosen(visit: Any) -> None:
    made = record()
    page = visit(made, DESKTOP)
    before = page.locator(".passage:not([hidden]) .t").evaluate_all("(all) => all.map((e) => e.className)")
    page.locator("#passage").get_by_label("tables", exact=True).last.check()
    classes = page.locator(".passage:not([hidden]) .t").evaluate_all("(all) => all.map((e) => e.className)")
    assert classes != before
    skill = SKILLS.index("tables")
    signs = [token["alpha"][skill] for token in made["passages"][0]["tokens"]]
    assert all(int(each[-1]) >= 4 for each, sign in zip(classes, signs, strict=True) if sign > 0)
    assert all(int(each[-1]) <= 4 for each, sign in zip(classes, signs, strict=True) if sign < 0)
    page.locator("#passage").get_by_label("headers+tables", exact=True).check()
    assert page.locator(".passage:not([hidden])").get_attribute("data-passage") == "4"
    assert page.locator(".panel .hint").count() == 1
