"""Environments by name: `family/task`, with what was changed behind an `@`: `dmc/walker-walk@gravity=1.5`.

Beside the families any `gymnasium.Env` will do: an id that Gymnasium knows, `module:function`, or in Python
the environment or a callable that makes one.

To add a family write its module, a class like `dm_control.DMControl`, and add a line here.
"""

from expertise.policy.envs.environment import Environment, Step, make, names
from expertise.policy.envs.families import FAMILIES
from expertise.policy.envs.name import Name, reference
from expertise.policy.envs.shifts import Shift
from expertise.policy.envs.simulator import Outcome, Simulator
from expertise.policy.envs.vector import Environments, Steps

__all__ = [
    "FAMILIES",
    "Environment",
    "Environments",
    "Name",
    "Outcome",
    "Shift",
    "Simulator",
    "Step",
    "Steps",
    "make",
    "names",
    "reference",
]
