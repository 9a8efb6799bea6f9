"""Save and load policies and critics: safetensors and JSON in a folder with checksums of every file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from expertise.errors import RunError
from expertise.policy.acting import Policy, restored
from expertise.policy.critics import Critics, CriticsConfig
from expertise.runs import checkpoint
from expertise.runs import recipe as recipes
from expertise.runs.device import resolve
from expertise.runs.folder import MANIFEST
from expertise.runs.weights import fitting_weights

POLICY = "policy.json"
"""File of a policy's facts, beside its weights."""
CRITICS = "critics.json"
"""File of the facts of critics alone."""
_WEIGHTS = "model"

_Model = TypeVar("_Model", bound=nn.Module)


def save(model: Policy | Critics, path: str | Path, step: int = 0) -> None:
    """Save a policy and its critics, or critics alone, in the layout of a checkpoint.

    Args:
        model: the policy or the critics.
        path: the folder; a saved policy or saved critics there are replaced atomically.
        step: number of training steps so far.

    Raises:
        RunError: the folder holds anything else.
        DiskError: the disk is full, or writing is not permitted.
    """
    path = Path(path)
    if path.exists() and not any((path / name).is_file() for name in (POLICY, CRITICS)):
        raise RunError(f"{path} exists and is neither a policy nor critics", "choose another folder")
    own = (POLICY, CRITICS, _WEIGHTS + ".safetensors", MANIFEST)
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own) if path.exists() else []
    if others:
        raise RunError(f"{path} holds more than a policy: {others[0]}", "choose another folder, or move that")
    checkpoint.write(path, step, {_WEIGHTS: model.state_dict()}, texts_of(model))


def texts_of(model: Policy | Critics) -> dict[str, str]:
    """Return the JSON files that are saved beside the weights: file name → content."""
    name = POLICY if isinstance(model, Policy) else CRITICS
    return {name: json.dumps(model.facts(), indent=1) + "\n"}


def load(path: str | Path, device: str = "cpu") -> Policy:
    """Load a policy of any kind, ready to act.

    Args:
        path: a folder that `save` wrote, a checkpoint, or a run (its newest whole checkpoint is taken).
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        RunError: there is no policy, it is damaged, or its files do not fit together.
    """
    return _load(Path(path), POLICY, "policy", restored, device)


def load_critics(path: str | Path, device: str = "cpu") -> Critics:
    """Load critics that were saved alone; those of a policy are its `critics`.

    Args:
        path: a folder that `save` wrote, a checkpoint, or a run (its newest whole checkpoint is taken).
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        RunError: there are no critics, they are damaged, or their files do not fit together.
    """
    return _load(Path(path), CRITICS, "critics", _critics, device)


def _load(path: Path, name: str, what: str, build: Callable[[dict[str, Any]], _Model], device: str) -> _Model:
    found = checkpoint.open_checkpoint(path) if checkpoint.is_checkpoint(path) else checkpoint.latest(path)
    if found is None or not (found.path / name).is_file():
        raise RunError(
            f"{path} holds no {what}: there is no {name}" if path.exists() else f"no {what} at {path}"
        )
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        model = build(json.loads(found.text(name)))
    tensors = fitting_weights(model, found, f"its {name}")
    with torch.no_grad():
        # In place, so that shared memory in the model (a base and the skills over it) stays shared.
        for key, tensor in model.state_dict().items():
            tensor.copy_(tensors[key])
    return model.to(resolve(device)).eval()


def _critics(facts: dict[str, Any]) -> Critics:
    config = recipes.build(facts["critics"], CriticsConfig)
    return Critics(config, facts["observation_dim"], facts["action_dim"])
