"""Hooks on a composed model: each call's own arguments (weights, skills, context) go to the composition."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from expertise.skills.call import Call
from expertise.skills.checkpointing import Checkpointing
from expertise.skills.given import OURS

if TYPE_CHECKING:
    from expertise.skills.composition import Composition


def listen(model: nn.Module, composition: Composition) -> None:
    """Report every call of a model to its composition, including calls of methods named in `entry_points`."""
    calls = _Calls(model, composition)
    model.register_forward_pre_hook(calls.before, with_kwargs=True)
    model.register_forward_hook(calls.after, always_call=True)
    for name in getattr(model, "entry_points", ()):
        setattr(model, name, functools.partial(calls.enter, model, name))


class _Calls:
    def __init__(self, model: nn.Module, composition: Composition) -> None:
        self.composition = composition
        self.checkpointing = Checkpointing(model, composition)
        self.parameters = tuple(inspect.signature(model.forward).parameters)
        # Keywords that the base's own forward also has are passed on to it.
        self.ours = tuple(key for key in OURS if key not in self.parameters)
        self.inside = False

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: start a call."""
        self.inside = True
        given = {key: kwargs.pop(key) for key in self.ours if key in kwargs}
        self._start(given, {**dict(zip(self.parameters, args, strict=False)), **kwargs})
        return args, kwargs

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: finish a call. A call that failed has no output."""
        self.inside = False
        if output is not None:
            self._finish(output)

    def enter(self, model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run one of the model's `entry_points`, called from outside or by its own forward."""
        method = functools.partial(getattr(type(model), name), model)
        if self.inside:
            return method(*args, **kwargs)
        given = {key: kwargs.pop(key) for key in self.ours if key in kwargs}
        self._start(given, inspect.signature(method).bind(*args, **kwargs).arguments)
        output = method(*args, **kwargs)
        self._finish(output)
        return output

    def _finish(self, output: Any) -> None:
        self.composition.finish(output)
        self.checkpointing.remember(output)

    def _start(self, given: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        self.checkpointing.prepare()
        mask, documents = others.get("attention_mask"), others.get("documents")
        positions = others.get("position_ids")
        if (
            documents is None
            and isinstance(mask, Tensor)
            and mask.ndim == 4
            and isinstance(positions, Tensor)
        ):
            # Packed texts in a transformers model: each begins at position 0. Padding follows the last text,
            # or counts as a text of its own.
            mask, documents = None, (positions == 0).cumsum(-1)
        cache = others.get("past_key_values", others.get("cache"))
        call = Call(mask=mask, cache=cache, documents=documents)
        self.composition.start(call, given)
