"""Convert states from simulators and controllers to tensors, and actions back to the same type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from expertise.errors import DataError
from expertise.shapes import Float


def states_of(observations: Any, width: int) -> Tensor:
    """Convert observations to rows `[states, width]`; a tensor stays on its device, all else becomes float32.

    Args:
        observations: `[states, width]` or one state `[width]`: a tensor, a NumPy array or lists of numbers.
        width: width of one observation.

    Raises:
        DataError: the values are no real numbers, not finite as float32, or of another shape.
    """
    rows = observations if isinstance(observations, Tensor) else _tensor(observations)
    if rows.is_complex() or rows.dtype == torch.bool:
        raise _no_numbers(str(rows.dtype))
    if rows.ndim not in (1, 2):
        raise DataError(
            f"observations are [states, {width}], or [{width}] for one state, not {list(rows.shape)}"
        )
    if rows.shape[-1] != width:
        raise DataError(f"the policy takes observations of width {width}, not {rows.shape[-1]}")
    rows = rows if rows.ndim == 2 else rows.unsqueeze(0)
    bad = ~torch.isfinite(rows.float())
    if bad.any():
        state, component = bad.nonzero()[0].tolist()
        raise DataError(
            f"observations hold {float(rows[state, component]):g} in state {state}, component {component}",
            "a policy acts on finite numbers only: look at the sensor or the simulator",
        )
    return rows


def like(observations: Any, actions: Float[Tensor, "states actions"]) -> Tensor | np.ndarray:
    """Convert actions to the type of the observations, which `states_of` has checked."""
    if isinstance(observations, Tensor):
        return actions[0] if observations.ndim == 1 else actions
    found: np.ndarray = actions.cpu().numpy()
    return found[0] if np.ndim(observations) == 1 else found


def _tensor(observations: Any) -> Tensor:
    try:
        array = np.asarray(observations)
    except (TypeError, ValueError):  # lists of unequal length, or tensors on another device
        raise _no_numbers(f"such a {type(observations).__name__}") from None
    if array.dtype.kind not in "fiu":
        raise _no_numbers(f"a {type(observations).__name__} of {array.dtype}")
    # A copy in plain order: torch refuses arrays that are read-only, reversed, or of foreign byte order.
    with np.errstate(over="ignore"):  # values too large for float32 become infinite
        return torch.from_numpy(array.astype(np.float32, order="C"))


def _no_numbers(found: str) -> DataError:
    return DataError(
        f"observations are rows of real numbers, not {found}",
        "give a tensor, a NumPy array or lists of numbers",
    )
