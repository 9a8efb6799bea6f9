"""Models made of experts: `output = what is always on + sum of gate_i(context) * part_i(x)`.

The public packages are imported when they are first used, so `import expertise` stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expertise import lm, mixture, policy, skills
    from expertise.errors import ExpertiseError

__version__ = "0.1.0"
__all__ = ["ExpertiseError", "__version__", "lm", "mixture", "policy", "skills"]

_PACKAGES = ("lm", "mixture", "policy", "skills")


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"expertise.{name}")
    if name == "ExpertiseError":
        return importlib.import_module("expertise.errors").ExpertiseError
    raise AttributeError(f"module 'expertise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
