"""The page in a real browser: no network, everything drawn, hands find their way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, overflow
from report_records import record

_ODD_PAGES = (
    "hostile",
    "many layers",
    "many experts",
    "long names",
    "many domains",
    "top k",
    "dense",
    "empty",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, page_of: Callable[[str], str]) -> Path:
    made = tmp_path_factory.mktemp("pages")
    for name in ("demo", *_ODD_PAGES):
        (made / f"{name}.html").write_text(page_of(name), encoding="utf-8")
    return made


@pytest.fixture
def visit(open_page: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Opens the page of a case."""
    return lambda name, *arguments, **options: open_page(folder / f"{name}.html", *arguments, **options)


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_figure_is_drawn_and_nothing_sticks_out(visit: Any, size: dict[str, int], mode: str) -> None:
    page = visit("demo", size, mode)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    boxes = page.evaluate(
        """[...document.querySelectorAll(
            'figure, figure svg, .heat path, .stack .bar, .heatcells td'
        )].map((each) => {
            const box = each.getBoundingClientRect();
            return [each.tagName + '.' + each.getAttribute('class'), box.width, box.height];
        })"""
    )
    assert sum(name == "svg.chart" for name, *_ in boxes) >= 9
    assert sum(name == "svg.heat" for name, *_ in boxes) == 8
    assert [box for box in boxes if box[1] < 1 or box[2] < 1] == []
    assert overflow(page) <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(253, 252, 250)") == (mode == "light")
    heights = page.locator(".chart text").evaluate_all(
        "(all) => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 9


@pytest.mark.parametrize(
    "name",
    ["hostile", "many layers", "many experts", "long names", "many domains", "top k", "dense", "empty"],
)
def test_odd_pages_fit_a_phone(visit: Any, name: str) -> None:
    page = visit(name, PHONE, "dark")
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert overflow(page) <= 0
    assert page.locator("h1").is_visible()


def _line(layer: int, token: dict[str, Any]) -> str:
    parts, gates = token["parts"][layer - 1], token["gates"][layer - 1]
    words = ", ".join(f"{part} ({gate:.2f})" for part, gate in zip(parts, gates, strict=True))
    return f"layer {layer}: expert{'s' * (len(parts) > 1)} {words}"


def _panel(page: Any) -> str:
    """What the panel says, without the domains of the experts."""
    return page.evaluate(
        """(() => { const copy = document.querySelector('.panel').cloneNode(true);
        copy.querySelectorAll('.of').forEach((each) => { each.previousSibling.remove(); each.remove(); });
        return [...copy.querySelectorAll('li')].map((each) => each.textContent).join('|'); })()"""
    )


def test_keys_walk_through_the_passage(visit: Any) -> None:
    tokens = record()["passages"][0]["tokens"]
    page = visit("demo", DESKTOP)
    assert page.locator(".passage:not([hidden]) .t[tabindex='0']").count() == 1
    page.locator(".passage:not([hidden]) .t[tabindex='0']").focus()
    assert _panel(page).split("|") == [_line(layer, tokens[0]) for layer in (1, 2, 3, 4)]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert _panel(page).split("|") == [_line(layer, tokens[2]) for layer in (1, 2, 3, 4)]
    top = page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY") > top
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top + scrollY") == pytest.approx(
        top, abs=1
    )
    page.keyboard.press("End")
    assert _panel(page).startswith(_line(1, tokens[-1]))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('t')") is False


def test_pointer_layer_and_domain_choose(visit: Any) -> None:
    tokens = record()["passages"][2]["tokens"]
    page = visit("demo", DESKTOP)
    page.get_by_label("headers", exact=True).first.check()
    assert page.locator(".passage:not([hidden])").count() == 1
    shown = page.locator(".passage:not([hidden]) .t")
    assert shown.count() == len(tokens)
    page.get_by_label("layer 2", exact=True).check()
    shown.nth(4).hover()
    assert _panel(page) == _line(2, tokens[4])
    colours = {element: len(tokens[element]["parts"][1]) for element in range(40)}
    classes = shown.evaluate_all("(all) => all.slice(0, 40).map((each) => each.className)")
    assert all((classes[i] == classes[j]) == (colours[i] == colours[j]) for i in colours for j in colours)
    assert page.locator(".legends:not([hidden])").count() == 1
    assert len(set(classes)) >= 3


def test_a_tap_names_the_parts_and_the_panel_stays_in_view(visit: Any) -> None:
    tokens = record()["passages"][0]["tokens"]
    page = visit("demo", PHONE, has_touch=True, is_mobile=True)
    word = page.locator(".passage:not([hidden]) .t").nth(30)
    word.scroll_into_view_if_needed()
    word.tap()
    assert _panel(page).split("|") == [_line(layer, tokens[30]) for layer in (1, 2, 3, 4)]
    panel, touched = page.locator(".panel").bounding_box(), word.bounding_box()
    assert panel["y"] >= 0
    assert panel["y"] + panel["height"] <= PHONE["height"] + 1
    assert touched["y"] + touched["height"] <= panel["y"]


def test_heat_maps_answer_to_keys_pointer_and_order(visit: Any) -> None:
    made = record()
    page = visit("demo", DESKTOP)
    first = page.locator("#load .map").first
    first.locator(".heat").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    point = made["curves"]["evaluations"][1]
    wanted = f"step {point['step']}, expert 1: {point['loads'][0][1]:.2f}× the mean load"
    assert first.locator(".readout").text_content() == wanted
    strip = page.locator("#domains .map").first
    page.locator("#domains").get_by_label("tests", exact=True).check()
    shares = made["layers"][0]["domain_share"]
    best = max(range(32), key=lambda e: shares[e][3])
    box = strip.locator(".heat").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + box["height"] * 3.5 / 6)
    assert strip.locator(".readout").text_content().startswith(f"expert {best}, tests: ")
