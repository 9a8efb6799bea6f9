"""`torch.compile(fullgraph=True)` reads a mixture whole, float32 included, which `grouped_mm` refuses."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from expertise.mixture import PARTS, ROUTERS
from expertise.mixture.dispatch import DISPATCHES

SCRIPT = pathlib.Path(__file__).with_name("compiled_cases.py")
TRACED = [name for name in DISPATCHES if name != "reference"]
"""The reference loops over tokens in Python: it is for reading, not for compiling."""

Case = dict[str, Any]


def _compare(cases: dict[str, Case]) -> dict[str, float | str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def case(config_of: Callable[..., Any]) -> Callable[..., Case]:
    def make(router: str, kind: str, dispatch: str, width: int, backend: str, autocast: bool = False) -> Case:
        return {
            "router": dataclasses.asdict(config_of(ROUTERS[router])),
            "parts": dataclasses.asdict(config_of(PARTS[kind], num_parts=4, hidden=width, rank=width)),
            "dispatch": dispatch,
            "backend": backend,
            "autocast": autocast,
        }

    return make


def test_one_graph_for_every_router_kind_and_dispatch(case: Callable[..., Case]) -> None:
    """Traced with its gradient, no code generated. All in one process, whose start takes longest."""
    cases = {
        f"{router}/{kind}/{dispatch}/{width}": case(router, kind, dispatch, width, "aot_eager")
        for router in ROUTERS
        for kind in PARTS
        for dispatch in TRACED
        for width in ([16, 5] if dispatch == "grouped" and router == "top_k" else [16])
    }
    found = _compare(cases)
    wrong = {name: value for name, value in found.items() if isinstance(value, str) or value > 1e-5}
    assert not wrong
    assert set(found) == set(cases)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs gcc to generate code")
def test_generated_code(case: Callable[..., Case]) -> None:
    cases = {
        "float32": case("top_k", "swiglu", "grouped", 16, "inductor"),
        "bfloat16": case("top_k", "swiglu", "grouped", 16, "inductor", autocast=True),
    }
    found = _compare(cases)
    assert isinstance(found["float32"], float), found
    assert isinstance(found["bfloat16"], float), found
    assert found["float32"] < 1e-4
    assert found["bfloat16"] < 0.2
