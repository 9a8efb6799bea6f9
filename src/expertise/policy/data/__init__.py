"""Recorded data: readers of the usual layouts, one batch type, and collecting with teachers."""

from expertise.policy.data.arrays import from_arrays
from expertise.policy.data.read import READERS, DataConfig, read
from expertise.policy.data.transitions import Transitions, concatenate

__all__ = ["READERS", "DataConfig", "Transitions", "concatenate", "from_arrays", "read"]
