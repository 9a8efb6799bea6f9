"""A second tree of modules over the same storage, so that a base can be adapted without being touched."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from expertise.errors import SkillError


def clone(base: nn.Module) -> nn.Module:
    """A module tree like the base's, whose parameters are new, frozen objects over the base's storage.

    Nothing is copied but the modules' own attributes: the clone costs no memory for weights, and replacing a
    layer in it does not show in the base. `requires_grad` belongs to a parameter object, so the base stays
    trainable. Buffers are the base's own. Modules, parameters that are tied, and references from one module
    to another (also inside lists, tuples and dicts) keep their identity within the clone.

    Args:
        base: any module.

    Raises:
        SkillError: a module's `forward` was replaced on the instance (a tool that moves layers between
            devices does that): the replacement would run the base's layer.
    """
    modules: dict[int, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, module in base.named_modules():
        if "forward" in module.__dict__:
            raise SkillError(
                f"the forward of {name or type(module).__name__} was replaced, so the base cannot be shared",
                "load the base without device hooks (such as device_map) before composing",
            )
        twin = module.__class__.__new__(module.__class__)
        twin.__dict__.update(module.__dict__)
        modules[id(module)] = twin
    for module in base.modules():
        twin = modules[id(module)]
        for key, value in list(twin.__dict__.items()):
            twin.__dict__[key] = _translate(value, modules)
        twin.__dict__["_buffers"] = dict(module._buffers)
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


def replace(root: nn.Module, address: str, module: nn.Module) -> None:
    """Put a module into a tree, wherever the one at this address is used."""
    old = root.get_submodule(address)
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module


def _translate(value: Any, modules: dict[int, nn.Module]) -> Any:
    """Containers are copied, so that neither tree sees the other's changes; modules become their twins."""
    if isinstance(value, nn.Module):
        return modules.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in modules:
        return types.MethodType(value.__func__, modules[id(value.__self__)])
    if type(value) is dict or type(value).__name__ == "OrderedDict":
        return type(value)((key, _translate(item, modules)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_translate(item, modules) for item in value)
    if type(value) is set:
        return set(value)
    return value
