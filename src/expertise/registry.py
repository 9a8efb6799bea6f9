"""Registries: one table per family (routers, parts, dispatches, commands) from a name to an import path."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from expertise.errors import RecipeError, nearest


class Registry(Mapping[str, Any]):
    """A mapping from names to objects; each object is imported when it is first asked for.

    Args:
        family: what the entries are, in the singular; used in messages.
        table: name → "package.module:attribute".
        about: what the family is for, in a sentence, where a user is shown it.
        configs: a module that may hold an entry's configuration by itself, as `TopKConfig` for `TopK`, so
            that a recipe is validated without importing the entry; what it lacks is the entry's own `Config`.
    """

    def __init__(self, family: str, table: Mapping[str, str], about: str = "", configs: str = "") -> None:
        self.family = family
        self.about = about
        self._table = dict(table)
        self._configs = configs
        self._loaded: dict[str, Any] = {}

    # Compared and hashed by identity, because annotations that hold a registry must be hashable.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __getitem__(self, name: str) -> Any:
        """The registered object.

        Raises:
            RecipeError: no entry has this name; the nearest one is named.
        """
        if name not in self._table:
            raise RecipeError(f"unknown {self.family} {name!r}", nearest(name, self._table))
        if name not in self._loaded:
            module, _, attribute = self._table[name].partition(":")
            self._loaded[name] = getattr(importlib.import_module(module), attribute)
        return self._loaded[name]

    def config(self, name: str) -> Any:
        """The configuration class of an entry, without importing the entry where that is possible.

        Raises:
            RecipeError: no entry has this name.
        """
        if name in self._table and self._configs:
            attribute = f"{self._table[name].partition(':')[2]}Config"
            apart = getattr(importlib.import_module(self._configs), attribute, None)
            if apart is not None:
                return apart
        return self[name].Config

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table
