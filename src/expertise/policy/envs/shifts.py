"""Changed dynamics: factors on what a MuJoCo model says about its world (the setting of PSEC's Fig. 6)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from expertise.errors import RecipeError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Factors on the nominal dynamics; 1 changes nothing."""

    gravity: float = 1.0
    """On the acceleration of gravity."""
    mass: float = 1.0
    """On every body's mass, and so on its inertia."""
    friction: float = 1.0
    """On the sliding friction of every surface."""
    strength: float = 1.0
    """On the force of every actuator."""

    def __post_init__(self) -> None:
        for key in self.keys():
            value = getattr(self, key)
            # Without mass there are no dynamics; a negative friction or strength means nothing.
            if not math.isfinite(value) or value < 0 or (key == "mass" and value == 0):
                raise RecipeError(f"a shift's {key} must be a positive number, not {value:g}")

    @classmethod
    def keys(cls) -> list[str]:
        """What can be changed."""
        return [field.name for field in dataclasses.fields(cls)]

    def changed(self) -> list[str]:
        """What is changed."""
        return [key for key in self.keys() if getattr(self, key) != 1.0]


def shift_mujoco(model: Any, data: Any, shift: Shift) -> None:
    """Apply a shift to a MuJoCo model in place.

    Args:
        model: mujoco.MjModel.
        data: its mujoco.MjData; it is left in the model's initial state.
        shift: the factors.
    """
    import mujoco  # whoever has a model has the package

    model.opt.gravity[:] *= shift.gravity
    model.body_mass[:] *= shift.mass
    model.body_inertia[:] *= shift.mass
    model.geom_friction[:, 0] *= shift.friction
    # A motor's force is gain · control + bias (position servos have a bias that pulls back).
    model.actuator_gainprm[:] *= shift.strength
    model.actuator_biasprm[:] *= shift.strength
    # Masses are also held in sums and inverse weights, which the solver uses.
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
