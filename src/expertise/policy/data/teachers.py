"""Who acts while data are collected: trained actors, scripted experts, chance; and blends of two of them."""

from __future__ import annotations

import abc
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.policy.data.actions import Bounds
from expertise.policy.data.checks import ROUNDING
from expertise.policy.envs import Name
from expertise.policy.extras import needed
from expertise.runs import checkpoint
from expertise.shapes import Float

WEIGHTS, FACTS = "sac", "teacher.json"
"""What a teacher's folder holds: every weight of SAC as safetensors, and what is known of them."""


class Teacher(abc.ABC):
    """Chooses an action for an observation."""

    @abc.abstractmethod
    def act(self, observation: Float[np.ndarray, " observation"], dice: np.random.Generator) -> Any:
        """An action [action] in [-1, 1]; all that is random in it comes from `dice`."""

    def facts(self) -> dict[str, Any]:
        """What is noted of it beside the data."""
        return {}


class Actor(Teacher):
    """The actor of a soft actor-critic: a normal distribution squashed by tanh (arXiv 1801.01290, App. C).

    Args:
        tensors: weights as stable-baselines3 names them.
        sample: draw from the distribution; else its mean, squashed.
        facts: what is known of it.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, sample: bool = True, facts: dict[str, Any] | None = None
    ) -> None:
        self._facts, self._sample = facts or {}, sample
        hidden = sum(name.startswith("actor.latent_pi") and name.endswith("weight") for name in tensors)
        # Activations stand between the layers in the numbering.
        self._layers = [_layer(tensors, f"actor.latent_pi.{2 * number}") for number in range(hidden)]
        self._mean, self._log_std = _layer(tensors, "actor.mu"), _layer(tensors, "actor.log_std")
        self.widths = self._layers[0][0].shape[1], len(self._mean[1])
        """Of an observation and of an action."""

    @classmethod
    def read(cls, folder: Path, *, sample: bool = True) -> Actor:
        """An actor that `expertise.policy.data.sac` has kept.

        Raises:
            RunError: the folder is damaged or holds something else.
        """
        found = checkpoint.open_checkpoint(folder)
        return cls(found.tensors(WEIGHTS), sample=sample, facts=json.loads(found.text(FACTS)))

    @torch.inference_mode()
    def act(self, observation: Float[np.ndarray, " observation"], dice: np.random.Generator) -> Any:
        """Draw an action, or take the mean."""
        hidden = torch.from_numpy(observation)
        for weight, bias in self._layers:
            hidden = F.relu(F.linear(hidden, weight, bias))
        action = F.linear(hidden, *self._mean)
        if self._sample:
            std = F.linear(hidden, *self._log_std).clamp(-20, 2).exp()
            noise = dice.standard_normal(len(action), np.float32)
            action = action + std * torch.from_numpy(noise)
        return action.tanh().numpy()

    def facts(self) -> dict[str, Any]:
        """Environment, steps, return and the rest, as they were noted when it was trained."""
        return self._facts


class Script(Teacher):
    """Meta-World's scripted expert of a task.

    Args:
        environment: name of an environment of that family.

    Raises:
        RecipeError: the environment has no script.
        MissingExtra: Meta-World is not installed.
    """

    def __init__(self, environment: str) -> None:
        name = Name.parse(environment)
        scripts = _scripts() if name.family == "metaworld" else {}
        if name.task not in scripts:
            raise RecipeError(
                f"{environment} has no scripted teacher", "the tasks of the family 'metaworld' have one"
            )
        self._policy = scripts[name.task]()

    def act(self, observation: Float[np.ndarray, " observation"], dice: np.random.Generator) -> Any:
        """What the script does; it draws nothing."""
        # Scripts ask for more than the arm can do, and warn each time that it will be clipped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action = self._policy.get_action(observation.astype(np.float64))
        return np.clip(action, -1.0, 1.0)

    def facts(self) -> dict[str, Any]:
        """The script's name."""
        return {"script": type(self._policy).__name__}


class Chance(Teacher):
    """Acts at random, evenly over all actions.

    Args:
        action_dim: numbers in an action.
    """

    def __init__(self, action_dim: int) -> None:
        self._action_dim = action_dim

    def act(self, observation: Float[np.ndarray, " observation"], dice: np.random.Generator) -> Any:
        """An action drawn evenly from [-1, 1] in each component."""
        return dice.uniform(-1.0, 1.0, self._action_dim)


class Called(Teacher):
    """A Python callable from an observation to an action.

    Args:
        act: the callable; it gets one observation, a row of float32.
        action_dim: numbers in an action.
        bounds: of its actions, where they are in the environment's units; None: they are in [-1, 1].
    """

    def __init__(self, act: Callable[[Any], Any], action_dim: int, bounds: Bounds | None = None) -> None:
        self._act, self._action_dim = act, action_dim
        self._bounds = bounds or Bounds(np.full(action_dim, -1.0), np.full(action_dim, 1.0))
        self._hint = "" if bounds else 'in the environment\'s own units: record(…, units="environment")'

    def act(self, observation: Float[np.ndarray, " observation"], dice: np.random.Generator) -> Any:
        """The callable's action, in [-1, 1].

        Raises:
            RecipeError: it is not of the environment's width, not finite, or outside its bounds.
        """
        found = self._act(observation)
        action = np.ravel(found.detach().cpu() if isinstance(found, Tensor) else found).astype(np.float64)
        if len(action) != self._action_dim:
            raise RecipeError(
                f"the callable gives {len(action)} numbers, an action here has {self._action_dim}"
            )
        share = self._bounds.scaled(action[None])[0]
        if not (np.abs(share) <= 1 + ROUNDING).all():
            worst = int(np.argmax(~(np.abs(share) <= 1 + ROUNDING)))
            raise RecipeError(
                f"the callable gives {action[worst]:g} for component {worst} of an action; it must lie in "
                f"{self._bounds}",
                *([self._hint] if self._hint else []),
            )
        return share


def _layer(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _scripts() -> dict[str, Any]:
    table: dict[str, Any] = needed("metaworld.policies", "a scripted teacher").ENV_POLICY_MAP
    return table
