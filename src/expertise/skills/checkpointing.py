"""Gradient checkpointing of a composed model, whose base is never in training mode.

`transformers` computes a layer again in the backward pass, instead of keeping what it computed, only where
the layer is in training mode. There dropout would be on, so a layer is put into it for that question alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from expertise.errors import SkillError

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


class Checkpointing:
    """The layers of a model that transformers can checkpoint.

    Args:
        model: a composed model.
        composition: its.
    """

    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self.composition = composition
        self.layers: list[Any] = [module for module in model.modules() if _can_be_checkpointed(module)]

    def prepare(self) -> None:
        """Before a call: what was switched on or off since the last one takes effect."""
        for layer in self.layers:
            layer.training = bool(layer.gradient_checkpointing) and self.composition.training
            if layer.training and not isinstance(layer._gradient_checkpointing_func, _Checkpoint):
                layer._gradient_checkpointing_func = _Checkpoint(
                    layer._gradient_checkpointing_func, layer, self.composition
                )


class _Checkpoint:
    """A layer's checkpoint function; it computes again with the alpha of the first time, dropout off."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module, composition: Composition) -> None:
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise SkillError(
                "a composed model cannot be checkpointed with use_reentrant=True: its router would not learn",
                'switch it on with activation_checkpointing_kwargs={"use_reentrant": False}',
            )
        self.function, self.layer, self.composition = function, layer, composition

    def __call__(self, run: Callable[..., Any], *args: Any) -> Any:
        moment = self.composition.moment()

        def again(*inner: Any) -> Any:
            self.layer.training = False
            try:
                with moment():
                    return run(*inner)
            finally:
                self.layer.training = True

        return self.function(again, *args)


def _can_be_checkpointed(module: nn.Module) -> bool:
    # Older models ask in a module above their layers, where being in training mode also means layer dropout.
    return any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(module).__mro__)
