"""Policies and critics on disk: safetensors and JSON in a folder whose every byte is checked."""

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
"""What a policy is made of, beside its weights."""
CRITICS = "critics.json"
"""The same for critics alone."""
_WEIGHTS = "model"

_Model = TypeVar("_Model", bound=nn.Module)


def save(model: Policy | Critics, path: str | Path, step: int = 0) -> None:
    """Write a policy and its critics, or critics alone, in the layout of a checkpoint.

    Args:
        model: what to write.
        path: the folder; a policy or critics that stand there are replaced once all is written.
        step: training steps behind it.

    Raises:
        RunError: something else stands there, or lies in the folder that would be replaced.
        DiskError: no room, or no right to write.
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
    """The JSON that stands beside the weights: file name → content."""
    name = POLICY if isinstance(model, Policy) else CRITICS
    return {name: json.dumps(model.facts(), indent=1) + "\n"}


def load(path: str | Path, device: str = "cpu") -> Policy:
    """A policy of any kind, ready to act.

    Args:
        path: a folder that `save` wrote, a checkpoint, or a run (its newest whole checkpoint is taken).
        device: "cpu", "cuda", "mps" or "auto".

    Raises:
        RunError: there is no policy, it is damaged, or its files do not fit together.
    """
    return _load(Path(path), POLICY, "policy", restored, device)


def load_critics(path: str | Path, device: str = "cpu") -> Critics:
    """Critics that stand alone; those of a policy are its `critics`.

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
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are thrown away
        model = build(json.loads(found.text(name)))
    tensors = fitting_weights(model, found, f"its {name}")
    with torch.no_grad():
        # In place, so that what shares memory in the model (a base and the skills over it) goes on doing so.
        for key, tensor in model.state_dict().items():
            tensor.copy_(tensors[key])
    return model.to(resolve(device)).eval()


def _critics(facts: dict[str, Any]) -> Critics:
    config = recipes.build(facts["critics"], CriticsConfig)
    return Critics(config, facts["observation_dim"], facts["action_dim"])
