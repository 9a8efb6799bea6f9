"""Annotations are kept as text: here they are evaluated, as readers of recipes and of shapes do."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import expertise.mixture

SOURCE = Path(expertise.__file__).parent
MODULES = [
    ".".join(["expertise", *path.relative_to(SOURCE).with_suffix("").parts])
    for path in [
        *sorted((SOURCE / "mixture").rglob("[!_]*.py")),
        *(SOURCE / name for name in ("runs/checkpoint.py", "lm/objective.py", "policy/diffusion.py")),
    ]
]
"""Those that `make test-mutation` changes: no other test would notice `int ** None`."""


def annotated(owner: Any, module: str) -> Iterator[Any]:
    """Functions and classes of a module, with everything inside."""
    for value in list(vars(owner).values()):
        each = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", None) or value))
        if getattr(each, "__module__", None) != module:
            continue
        if inspect.isclass(each):
            yield each
            yield from annotated(each, module)
        elif inspect.isfunction(each):
            yield each


@pytest.mark.parametrize("name", MODULES)
def test_annotations_can_be_evaluated(name: str) -> None:
    module = importlib.import_module(name)
    found = list(annotated(module, name))
    assert found, "a module without a function or a class"
    # Names that a module imports for the type checker alone, because they would load torch.
    apart = {name: getattr(expertise.mixture, name) for name in expertise.mixture.__all__}
    for each in [module, *found]:
        typing.get_type_hints(each, localns=apart, include_extras=True)
