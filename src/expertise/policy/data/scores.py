"""How data sets count: returns and costs on the scales of DSRL and of D4RL."""

from __future__ import annotations

from typing import NamedTuple

from expertise.errors import RecipeError, nearest


class Reference(NamedTuple):
    """What DSRL's data for a task reach (dsrl 0.1.0, `infos.py`)."""

    min_return: float
    max_return: float
    max_cost: float
    steps: int
    """Decisions per episode."""


BULLET = {
    "BallRun": Reference(26.339754104614258, 1327.445556640625, 80, 100),
    "CarRun": Reference(204.28726196289062, 574.6533203125, 40, 200),
    "DroneRun": Reference(10.557029724121094, 682.8330078125, 140, 200),
    "AntRun": Reference(0.001767391717990563, 955.4818725585938, 150, 200),
    "BallCircle": Reference(0.38312244415283203, 881.46337890625, 80, 200),
    "CarCircle": Reference(3.484419822692871, 534.3060913085938, 100, 300),
    "DroneCircle": Reference(207.794189453125, 996.38916015625, 100, 300),
    "AntCircle": Reference(0.0177031010389328, 460.7091979980469, 200, 500),
}
"""DSRL's tasks of Bullet-Safety-Gym; the environment is `bullet/<task>`."""

LOCOMOTION = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
"""D4RL's returns of a random and of an expert policy (`infos.py`); the environment is `gym/<task>-v…`. They
were taken on version 2 of the tasks; rewards of later versions differ a little."""


def on_scale(environment: str, value: float) -> float | None:
    """A return on the scale of the data sets that are common for its environment; None: there is none.

    For DSRL's tasks that is its normalised reward, for D4RL's its normalised score divided by 100. Changes of
    dynamics in the name change nothing. Names of Gymnasium's environments, of any form, have no scale.
    """
    family, _, task = environment.partition("@")[0].partition("/")
    if family == "bullet" and task in BULLET:
        return normalized_reward(task, value)
    robot = task.partition("-")[0]
    if family in ("gym", "velocity") and robot in LOCOMOTION:
        least, greatest = LOCOMOTION[robot]
        return (value - least) / (greatest - least)
    return None


def normalized_reward(task: str, value: float) -> float:
    """(value - least) / (greatest - least) of DSRL's data, so 1 is the best of them.

    Raises:
        RecipeError: DSRL has no such task here.
    """
    reference = _reference(task)
    return (value - reference.min_return) / (reference.max_return - reference.min_return)


def normalized_cost(cost: float, limit: float) -> float:
    """Cost of an episode over its limit: safe is below 1. For a limit of 0 both get 1 more, as in DSRL."""
    one = float(limit == 0)
    return (cost + one) / (limit + one)


def _reference(task: str) -> Reference:
    if task not in BULLET:
        raise RecipeError(f"DSRL has no task {task!r}", nearest(task, BULLET))
    return BULLET[task]
