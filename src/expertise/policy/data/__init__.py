"""Recorded data: readers of the usual layouts, one batch type, and collecting with teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.policy.data.arrays import from_arrays
    from expertise.policy.data.read import READERS, DataConfig, read
    from expertise.policy.data.record import record
    from expertise.policy.data.transitions import Transitions, concatenate

__all__ = ["READERS", "DataConfig", "Transitions", "concatenate", "from_arrays", "read", "record"]

public_names(
    __name__,
    {
        "arrays": ("from_arrays",),
        "read": (
            "READERS",
            "DataConfig",
            "read",
        ),
        "record": ("record",),
        "transitions": (
            "Transitions",
            "concatenate",
        ),
    },
)
