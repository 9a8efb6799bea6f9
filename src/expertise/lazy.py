"""Packages whose public names are imported when first used, so that mistakes are told without torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def public_names(package: str, homes: Mapping[str, tuple[str, ...]]) -> None:
    """Let a package give its public names on demand; called at the end of its `__init__.py`.

    Args:
        package: its full name.
        homes: module of the package → names that it holds.
    """

    class Package(ModuleType):
        """A module that imports its public names when they are first read."""

        def __getattr__(self, name: str) -> Any:
            for module, names in homes.items():
                if name in names:
                    return getattr(importlib.import_module(f"{package}.{module}"), name)
            whole = f"{package}.{name}"
            try:
                if not name.startswith("_"):
                    return importlib.import_module(whole)
            except ModuleNotFoundError as error:
                if error.name != whole:
                    raise
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __setattr__(self, name: str, value: object) -> None:
            # Python puts a module that it has imported into its package. Where a function has the module's
            # name (`load` of load.py), the function is what the package gives.
            if not (isinstance(value, ModuleType) and any(name in names for names in homes.values())):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *(name for names in homes.values() for name in names)})

    sys.modules[package].__class__ = Package
