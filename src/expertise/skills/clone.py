"""A copy of a module tree that shares the base's storage, so that the base itself is not changed."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from expertise.errors import SkillError

_OWN = ("_parameters", "_buffers", "_modules")


def clone(base: nn.Module) -> nn.Module:
    """Copy a base's module tree; its parameters are new, frozen objects over the base's storage.

    Nothing is copied but the modules' own attributes: the clone costs no memory for weights, and replacing a
    layer in it does not show in the base. `requires_grad` belongs to a parameter object, so the base stays
    trainable. Buffers are the base's own. Modules, parameters that are tied, and references from one module
    to another (also inside lists, tuples and dicts) keep their identity within the clone.

    Args:
        base: any module.

    Raises:
        SkillError: a module cannot be shared: its `forward` was replaced on the instance (a tool that moves
            layers between devices does that, and `torch.compile`), so that it would run the base's layer; or
            it changes its own weights.
    """
    modules: dict[int, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, module in base.named_modules():
        if problem := _problem(module):
            what = name or type(module).__name__
            raise SkillError(f"the base cannot be shared: {what} {problem[0]}", *problem[1:])
        twin = module.__class__.__new__(module.__class__)
        twin.__dict__.update(module.__dict__)
        modules[id(module)] = twin
    for module in base.modules():
        twin = modules[id(module)]
        for key, value in list(twin.__dict__.items()):
            twin.__dict__[key] = _translate(value, modules)
        twin.__dict__["_modules"] = {
            name: None if child is None else modules[id(child)] for name, child in module._modules.items()
        }
        own: dict[str, nn.Parameter | None] = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                own[name] = None
                continue
            if id(parameter) not in parameters:
                parameters[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
            own[name] = parameters[id(parameter)]
        twin.__dict__["_parameters"] = own
        twin.__dict__["training"] = False
    return modules[id(base)]


def replace(root: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules everywhere in a tree.

    Args:
        root: the tree; not itself replaced.
        stand_ins: module → what stands in its place; it may hold the module.
    """
    known = {id(module): stand_in for module, stand_in in stand_ins.items()}
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in known:
                parent._modules[name] = known[id(child)]
        for key, value in list(parent.__dict__.items()):
            if key not in _OWN:
                parent.__dict__[key] = _translate(value, known)


def guard(root: nn.Module, base: nn.Module) -> None:
    """Refuse to load other weights into the storage of a base, which would overwrite the base's own.

    Args:
        root: a tree over the base's storage, maybe with more in it.
        base: whose storage it is.
    """

    def check(module: nn.Module, state: Mapping[str, Any], prefix: str, metadata: Any, *more: Any) -> None:
        if metadata.get("assign_to_params_buffers"):
            return
        theirs = {tensor.data_ptr() for tensor in _tensors(base).values()}
        for name, own in _tensors(module).items():
            given = state.get(prefix + name)
            if given is None or own.data_ptr() not in theirs or not own.numel():
                continue
            if given.shape != own.shape or not torch.equal(given.to(own.device, own.dtype), own):
                raise SkillError(
                    f"these weights were saved with another base: {name} differs",
                    "compose the skills with the base that they were composed with",
                )

    root.register_load_state_dict_pre_hook(check)  # type: ignore[no-untyped-call]


class Shared:
    """Holds a base without registering it as a child; copies of the holder share it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def _problem(module: nn.Module) -> tuple[str, ...] | None:
    if "forward" in module.__dict__:
        hint = "compose the plain module: without device hooks (such as device_map), before torch.compile"
        return "runs something else than its own forward", hint
    if isinstance(module, torch.jit.ScriptModule):
        return ("is compiled TorchScript",)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return ("changes its own weights whenever it is called (max_norm)",)
    return None


def _translate(value: Any, modules: dict[int, nn.Module]) -> Any:
    """Copy containers, and replace modules in them by their clones."""
    if isinstance(value, nn.Module):
        return modules.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in modules:
        twin = modules[id(value.__self__)]
        if type(twin) is type(value.__self__):
            return types.MethodType(value.__func__, twin)
        return getattr(twin, value.__name__)
    if isinstance(value, functools.partial):
        function, *args = (_translate(part, modules) for part in (value.func, *value.args))
        return functools.partial(function, *args, **value.keywords)
    if type(value) is dict or type(value).__name__ == "OrderedDict":
        return type(value)((key, _translate(item, modules)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_translate(item, modules) for item in value)
    if type(value) is set:
        return set(value)
    return value
