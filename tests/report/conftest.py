"""Pages of the made-up records, each drawn once for all tests."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Under pytest's `importlib` mode a folder of tests is on no path: this makes `report_records` importable.
sys.path.insert(0, str(Path(__file__).parent))


@functools.cache
def _page(case: str) -> str:
    from report_records import ODD, record

    from expertise.report.language_model import render

    return render(record() if case == "demo" else ODD[case]())


@pytest.fixture(scope="session")
def page_of() -> Callable[[str], str]:
    """The page of a case: `demo`, or a name in `report_records.ODD`."""
    return _page
