"""Bases to adapt, and adapters that PEFT itself made for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Under pytest's `importlib` mode a folder of tests is on no path: this makes its plain modules importable.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def peft_adapter(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """`peft_adapter(base, seed, r=…, …)`: a folder that PEFT saved, and PEFT's model of it."""
    from judges import randomised

    def make(base: Any, seed: int = 0, **config: Any) -> tuple[Path, Any]:
        model = randomised(base, seed, **config)
        folder = tmp_path / f"adapter-{seed}"
        model.save_pretrained(folder)
        return folder, model

    return make
