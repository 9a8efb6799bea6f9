"""The page of a real run, opened in a real browser at two widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_run_opens_without_a_complaint(
    run_folder: Path, expertise, browser: Any, width: int
) -> None:
    assert expertise("inspect", "run").returncode == 0
    complaints, requests = [], []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((run_folder / "report.html").as_uri())
    boxes = page.eval_on_selector_all("figure", "all => all.map(f => f.getBoundingClientRect().height)")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.close()
    assert complaints == []
    assert requests == [(run_folder / "report.html").as_uri()]
    assert len(boxes) >= 6
    assert min(boxes) > 0
    assert wide <= 0
