"""Networks as lists of steps over named arrays, each a plain value that any language can carry out.

A step takes rows `x [rows, width]` and gives rows. `op` says what it does:

- `linear`: `x W^T + b` from `<name>.weight [out, in]` and, where it is there, `<name>.bias [out]`. With
  `skills`: `+ ((x A^T) * w) B` from `<name>.lora_A [R, in]` and `<name>.lora_B [R, out]`, where column r of
  `w [rows, R]` is alpha of the skill `<name>.owner [R]` times `<name>.scaling [R]`.
- `norm`: LayerNorm with `epsilon`, `<name>.weight` and `<name>.bias`.
- `mish`, `relu`, `tanh`.
- `residual`: x, and what `steps` make of it.
- `top_p`: softmax of each row of `columns` numbers; the greatest probabilities, as long as the sum of those
  before does not exceed `p`, times `strength`, else 0; of these the first `parts` columns.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.fixed import Fixed
from expertise.mixture.routers.top_p import TopP
from expertise.policy.network import Denoiser, FourierFeatures, PlainNetwork, ResidualNetwork
from expertise.skills.adapted import Adapted

Step = dict[str, Any]
"""One step: `op`, and what it needs."""

_EVERYTHING = 2.0
"""A `p` that no sum of probabilities exceeds, whatever its rounding."""


class Arrays(dict[str, np.ndarray]):
    """Named arrays, float32 or int64, as they are collected."""

    def put(self, name: str, tensor: Tensor) -> str:
        """Copy a tensor to the CPU; its name."""
        wanted = torch.float32 if tensor.is_floating_point() else torch.int64
        self[name] = tensor.detach().to("cpu", wanted).contiguous().numpy().copy()
        return name


@functools.singledispatch
def steps_of(module: nn.Module, name: str, arrays: Arrays) -> list[Step]:
    """What a layer, or several in a row, computes when it does not learn.

    Args:
        module: the layer.
        name: what its arrays are called.
        arrays: where they go.

    Raises:
        RecipeError: there are no words for it.
    """
    raise RecipeError(f"a policy with a layer of class {type(module).__name__} cannot be exported")


@steps_of.register(nn.Sequential)
def _(module: nn.Sequential, name: str, arrays: Arrays) -> list[Step]:
    layers = [steps_of(layer, f"{name}.{index}", arrays) for index, layer in enumerate(module)]
    return [step for steps in layers for step in steps]


@steps_of.register(nn.Linear)
def _(module: nn.Linear, name: str, arrays: Arrays) -> list[Step]:
    arrays.put(f"{name}.weight", module.weight)
    if module.bias is not None:
        arrays.put(f"{name}.bias", module.bias)
    return [{"op": "linear", "name": name}]


@steps_of.register(Adapted)
def _(module: Adapted, name: str, arrays: Arrays) -> list[Step]:
    layer, skills = module.mixture.always, module.parts
    assert isinstance(layer, nn.Linear)
    (step,) = steps_of(layer, name, arrays)
    arrays.put(f"{name}.lora_A", skills.lora_A)
    arrays.put(f"{name}.lora_B", skills.lora_B)
    # A layer numbers only the skills that adapt it; alpha has a column for each of them all.
    columns = torch.tensor(module.columns, device=skills.owner.device)
    arrays.put(f"{name}.owner", columns[skills.owner])
    arrays.put(f"{name}.scaling", skills.scaling[skills.owner])
    return [{**step, "skills": True}]


@steps_of.register(nn.LayerNorm)
def _(module: nn.LayerNorm, name: str, arrays: Arrays) -> list[Step]:
    arrays.put(f"{name}.weight", module.weight)
    arrays.put(f"{name}.bias", module.bias)
    return [{"op": "norm", "name": name, "epsilon": module.eps}]


@steps_of.register(nn.Mish)
@steps_of.register(nn.ReLU)
@steps_of.register(nn.Tanh)
def _(module: nn.Module, name: str, arrays: Arrays) -> list[Step]:
    return [{"op": type(module).__name__.lower()}]


@functools.singledispatch
def network_of(network: Denoiser, num_times: int, name: str, arrays: Arrays) -> dict[str, Any]:
    """What predicts noise: `features` is a table of a row per time, `time` makes the condition of such a row,
    `steps` the noise of [action, observation, condition].

    Raises:
        RecipeError: there are no words for it.
    """
    raise RecipeError(f"a policy with a network of class {type(network).__name__} cannot be exported")


@network_of.register(PlainNetwork)
def _(network: PlainNetwork, num_times: int, name: str, arrays: Arrays) -> dict[str, Any]:
    return {
        "features": _table(network.features, num_times, name, arrays),
        "time": [],
        "steps": steps_of(network.layers, f"{name}.layers", arrays),
    }


@network_of.register(ResidualNetwork)
def _(network: ResidualNetwork, num_times: int, name: str, arrays: Arrays) -> dict[str, Any]:
    mish = {"op": "mish"}
    steps = steps_of(network.first, f"{name}.first", arrays)
    for index, block in enumerate(network.blocks):
        norm, up, down = (
            steps_of(block.get_submodule(part), f"{name}.blocks.{index}.{part}", arrays)
            for part in ("norm", "up", "down")
        )
        steps.append({"op": "residual", "steps": [*norm, *up, mish, *down]})
    steps += [mish, *steps_of(network.last, f"{name}.last", arrays)]
    return {
        "features": _table(network.features, num_times, name, arrays),
        "time": steps_of(network.condition, f"{name}.condition", arrays),
        "steps": steps,
    }


def _table(features: FourierFeatures, num_times: int, name: str, arrays: Arrays) -> str:
    """The features of all times: these are few, and the same for every state."""
    times = torch.arange(num_times, device=features.frequencies.device)
    return arrays.put(f"{name}.features", features(times))


@functools.singledispatch
def alpha_of(alpha: Router, width: int, name: str, arrays: Arrays) -> list[Step]:
    """What a router gives as weights of parts, from an observation on its scale, `width` wide.

    Raises:
        RecipeError: there are no words for it.
    """
    raise _no_words(alpha)


@alpha_of.register(Context)
def _(alpha: Context, width: int, name: str, arrays: Arrays) -> list[Step]:
    if alpha.normalize:
        raise _no_words(alpha, "normalize = true")
    if alpha.squash == "sigmoid":
        raise _no_words(alpha, 'squash = "sigmoid"')
    steps = steps_of(alpha.network, name, arrays)
    number = alpha.num_parts
    return steps if alpha.squash == "none" else [*steps, _top_p(_EVERYTHING, 1.0, number, number)]


@alpha_of.register(Fixed)
def _(alpha: Fixed, width: int, name: str, arrays: Arrays) -> list[Step]:
    # The same for every state: a linear map of which only the bias is left.
    values = alpha.values
    arrays.put(f"{name}.weight", torch.zeros(len(values), width))
    arrays.put(f"{name}.bias", values)
    return [{"op": "linear", "name": name}]


@alpha_of.register(TopP)
def _(alpha: TopP, width: int, name: str, arrays: Arrays) -> list[Step]:
    needed = {"normalize": False, "scores": "softmax", "max_parts": None, "bias_step": 0.0}
    for option, value in needed.items():
        if getattr(alpha, option) != value:
            raise _no_words(alpha, option)
    if isinstance(alpha.scale, str):
        raise _no_words(alpha, f"scale = {alpha.scale!r}")
    last = f"{name}.router"
    arrays.put(f"{last}.weight", alpha.weight)
    return [
        *steps_of(alpha.trunk, f"{name}.trunk", arrays),
        {"op": "linear", "name": last},
        _top_p(alpha.p if alpha.p < 1 else _EVERYTHING, alpha.scale, alpha.num_parts, len(alpha.weight)),
    ]


def _top_p(p: float, strength: float, parts: int, columns: int) -> Step:
    return {"op": "top_p", "p": p, "strength": strength, "parts": parts, "columns": columns}


def _no_words(alpha: Router, option: str = "") -> RecipeError:
    what = f"{type(alpha).__name__} and its {option}" if option else f"class {type(alpha).__name__}"
    return RecipeError(f"a policy whose alpha is a router of {what} cannot be exported")
