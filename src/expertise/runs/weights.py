"""Putting a checkpoint's weights into a model."""

from __future__ import annotations

from torch import nn

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
    tensors, own = saved.tensors("model"), model.state_dict()
    for name in [*own, *tensors]:
        there = list(tensors[name].shape) if name in tensors else "missing"
        here = list(own[name].shape) if name in own else "not known"
        if there != here:
            raise RunError(
                f"the weights in {saved.path} do not fit {owner}: {name} is {there}, the model has it {here}"
            )
    model.load_state_dict(tensors)
