"""Putting a checkpoint's weights into a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from expertise.errors import RunError
from expertise.runs.checkpoint import Checkpoint


def load_weights(model: nn.Module, saved: Checkpoint, owner: str) -> None:
    """Put a checkpoint's weights into a model.

    Args:
        model: the model.
        saved: the checkpoint.
        owner: what the model was built from, for the message.

    Raises:
        RunError: a parameter is missing, not known, or of another shape; both shapes are named.
    """
    model.load_state_dict(fitting_weights(model, saved, owner))


def fitting_weights(model: nn.Module, saved: Checkpoint, owner: str) -> dict[str, Tensor]:
    """A checkpoint's weights, when they are those of a model; arguments and errors as `load_weights`."""
    tensors, own = named_now(model, saved.tensors("model")), model.state_dict()
    for name in [*own, *tensors]:
        there = list(tensors[name].shape) if name in tensors else "missing"
        here = list(own[name].shape) if name in own else "not known"
        if there != here:
            raise RunError(
                f"the weights in {saved.path} do not fit {owner}: {name} is {there}, the model has it {here}"
            )
    return tensors


def named_now(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names that a model has for them today.

    Args:
        model: its method `name_now`, if it has one, turns a name that an older version wrote into today's.
        tensors: name, or name and whatever follows it, → tensor.
    """
    name_now = getattr(model, "name_now", str)
    return {name_now(name): tensor for name, tensor in tensors.items()}
