"""Reading a record whose entries may be missing: a run that has just begun has hardly any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def look(record: Any, *path: str, default: Any = None) -> Any:
    """The value at a path of keys, or `default` where the path ends early or at None."""
    for key in path:
        if not isinstance(record, Mapping) or record.get(key) is None:
            return default
        record = record[key]
    return record


def rows(record: Any, *path: str) -> list[Any]:
    """The list at a path of keys; empty where there is none."""
    found = look(record, *path, default=())
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def domains(record: Any) -> list[str]:
    """Names of the domains, in the record's order."""
    return [str(domain) for domain in rows(record, "domains")]


def layer_names(record: Any) -> list[str]:
    """What each mixture layer is called: by its index in the model."""
    return [f"layer {look(layer, 'layer', default=i)}" for i, layer in enumerate(rows(record, "layers"))]
