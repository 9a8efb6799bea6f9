"""Activation checkpointing of composed models.

`transformers` does that only with layers that are in training mode. A composed model's are not, or dropout
would be on, so a layer is put into it for that question alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expertise.errors import SkillError

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


class Checkpointing:
    """Restores a call's alpha when checkpointed layers are recomputed in the backward pass.

    Args:
        model: a composed model.
        composition: the model's composition.
    """

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self.composition = composition
        self.layers: list[Any] = [module for module in model.modules() if _can_be_checkpointed(module)]

    def prepare(self) -> None:
        """Before a call: apply changes of the checkpointing settings since the last call."""
        for layer in self.layers:
            layer.training = bool(layer.gradient_checkpointing) and self.composition.training
            if layer.training and not isinstance(layer._gradient_checkpointing_func, _Checkpoint):
                layer._gradient_checkpointing_func = _Checkpoint(
                    layer._gradient_checkpointing_func, layer, self.composition
                )

    def remember(self, output: Any) -> None:
        """After a call: let the backward pass from its output use this call's alpha.

        Args:
            output: a tensor, or several in a sequence or a mapping.
        """
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        call = self.composition._call

        def back(gradient: Tensor | None) -> None:
            self.composition._call = call

        found = list(output.values()) if isinstance(output, Mapping) else output
        for tensor in found if isinstance(found, Sequence) else [found]:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(back)  # type: ignore[no-untyped-call]


class _Checkpoint:
    """A layer's checkpoint function that recomputes with the call's own alpha and with dropout off."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module, composition: Composition) -> None:
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise SkillError(
                "a composed model cannot be checkpointed with use_reentrant=True: its router would not learn",
                'switch it on with activation_checkpointing_kwargs={"use_reentrant": False}',
            )
        self.function, self.layer, self.composition = function, layer, composition

    def __call__(self, run: Callable[..., Any], *args: Any) -> Any:
        call = self.composition._call
        routes, shape = call.routes, call.shape

        def again(*inner: Any) -> Any:
            before, self.composition._call = self.composition._call, call
            if call.routes is not routes:
                # The router reads a module inside this layer, so it has not chosen when the layer begins.
                call.take(routes, shape)
            self.layer.training = False
            try:
                return run(*inner)
            finally:
                self.layer.training = True
                self.composition._call = before

        return self.function(again, *args)


def _can_be_checkpointed(module: nn.Module) -> bool:
    # Older models check the setting in a module above their layers, whose training mode also turns on layer
    # dropout.
    return any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(module).__mro__)
