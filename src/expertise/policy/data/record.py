"""Recording from Python: episodes of a callable in an environment, as transitions and as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import RecipeError
from expertise.policy.data.actions import Bounds
from expertise.policy.data.collect import joined
from expertise.policy.data.rollouts import CHANCE, RolloutConfig, roll_out
from expertise.policy.data.teachers import Called, Chance, Teacher
from expertise.policy.data.transitions import Transitions
from expertise.policy.data.write import WRITERS
from expertise.policy.envs import Environment
from expertise.policy.extras import versions


def record(
    environment: Any,
    teacher: str | Teacher | Callable[[Any], Any] = CHANCE,
    *,
    episodes: int,
    seed: int = 0,
    units: str = "policy",
    to: str | Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Transitions:
    """Episodes of a teacher in an environment.

    A seed fixes how the episodes begin and what the teacher "random" does; a callable draws by itself.

    Args:
        environment: a name, an id that Gymnasium knows, `module:function`, a `gymnasium.Env`, or a callable
            that makes one.
        teacher: "random" (evenly between the bounds of the actions), or a callable from an observation (one
            row of numbers) to an action, such as a policy's `act`.
        episodes: how many.
        seed: of the episodes.
        units: of a callable's actions: "policy" ([-1, 1]), or "environment" (between the bounds of its Box).
        to: a file `<name>.hdf5` to write them to, which `policy learn --data` reads; or a folder `<name>-v0`
            for a Minari data set. What stands there is replaced.
        say: told remarks, such as where costs come from, a line each.

    Returns:
        The transitions, with actions in [-1, 1].

    Raises:
        RecipeError: the environment or the teacher does not fit.
        DataError: the environment gives numbers that are not finite.
        MissingExtra: a package is not installed.
        DiskError: the file cannot be written.
    """
    layout, name = ("", "") if to is None else _target(Path(to))
    if episodes < 1:
        raise RecipeError(f"episodes must be 1 or more, not {episodes}")
    with Environment(environment) as here:
        acts = _teacher(teacher, here, units)
        config = RolloutConfig(teacher="callable", episodes=episodes)
        data = joined(list(roll_out(here, acts, config, seed, "record")))
        bounds = here.declared_bounds
        if say is not None:
            for note in here.notes:
                say(note)
        facts = {"name": name, "seed": seed, "environment": here.name, "versions": versions()}
    if to is not None:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        WRITERS[layout](Path(to).parent, name, data, facts, None if bounds is None else Bounds.of(*bounds))
    return data


def _target(path: Path) -> tuple[str, str]:
    """The layout and the name that a path asks for."""
    if path.suffix == ".hdf5":
        return "dsrl", path.stem
    if path.name.endswith("-v0"):
        return "minari", path.name.removesuffix("-v0")
    raise RecipeError(
        f"{path}: recorded data are written as <name>.hdf5, or as a Minari data set in a folder <name>-v0"
    )


def _teacher(teacher: Any, environment: Environment, units: str) -> Teacher:
    if units not in ("policy", "environment"):
        raise RecipeError(f"units: unknown {units!r}", "known are: policy, environment")
    if isinstance(teacher, Teacher):
        return teacher
    if teacher == CHANCE:
        return Chance(environment.action_dim)
    if not callable(teacher):
        raise RecipeError(f"teacher: {teacher!r} is neither {CHANCE!r} nor a callable")
    bounds = None
    if units == "environment":
        low, high = environment.action_bounds
        bounds = Bounds(np.array(low), np.array(high))
    return Called(teacher, environment.action_dim, bounds)
