"""Pages of the made-up records, each drawn once for all tests, and a browser to open them in."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Under pytest's `importlib` mode a folder of tests is on no path: this makes `report_records` importable.
sys.path.insert(0, str(Path(__file__).parent))


@functools.cache
def _page(case: str) -> str:
    from report_records import ODD, record

    from expertise.report.language_model import render
    from expertise.report.records import LanguageModelRecord, from_json

    return render(from_json(LanguageModelRecord, record() if case == "demo" else ODD[case]()))


@pytest.fixture(scope="session")
def page_of() -> Callable[[str], str]:
    """The page of a case: `demo`, or a name in `report_records.ODD`."""
    return _page


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file; at the end of the test nothing may have been complained of or asked for."""
    contexts, complaints = [], []

    def go(path: Path, size: dict[str, int], mode: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport=size, color_scheme=mode, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        address = path.as_uri()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on(
            "request", lambda request: request.url in (address, "data:,") or complaints.append(request.url)
        )
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
