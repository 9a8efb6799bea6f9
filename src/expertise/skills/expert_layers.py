"""Converts factors of single experts' linear layers to factors of the base's stacked experts.

In transformers 4 each expert of a mixture was a module with three linear layers, such as
`model.layers.0.block_sparse_moe.experts.3.w1`. Models of transformers 5, as our own, hold the weights of all
experts in two stacks `[E, out, in]`, the first of which holds gate and up projection one above the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.mixture.parts.swiglu import SwiGLUExperts
from expertise.skills.fit import submodule
from expertise.skills.skill import Factors
from expertise.skills.targets import experts_problem, is_foreign_experts, stacks_of

_LAYER = re.compile(r"(?P<experts>.+)\.(?P<number>\d+)\.(?P<name>w[123]|(?:gate|up|down)_proj)")
# The stack that holds a layer's weight, and the half of its rows.
_PLACES = {
    "w1": (0, 0),
    "gate_proj": (0, 0),
    "w3": (0, 1),
    "up_proj": (0, 1),
    "w2": (1, 0),
    "down_proj": (1, 0),
}


class ExpertLayers:
    """Collects factors of single experts' layers and joins them to factors of stacks.

    Args:
        base: the model that has the stacks; None: nothing is collected.
        where: the adapter's name in messages.
    """

    def __init__(self, base: nn.Module | None, where: str) -> None:
        self._base, self._where = base, where
        self._found: dict[tuple[str, int], dict[int, list[tuple[int, Factors]]]] = {}

    def has_place_for(self, address: str) -> bool:
        """True if the base holds the weight of this layer, given by its dotted name, inside a stack."""
        match = _LAYER.fullmatch(address)
        return self._base is not None and match is not None and self._path(match["experts"]) is not None

    def add(self, address: str, made: Factors) -> None:
        """Collect the factors of one layer, which must have a place in the base.

        Args:
            address: dotted name of the layer.
            made: its factors.

        Raises:
            SkillError: the base has no such expert, its experts cannot be adapted, or the shapes differ.
        """
        match = _LAYER.fullmatch(address)
        assert match is not None
        assert self._base is not None
        path = self._path(match["experts"])
        assert path is not None
        module = self._base.get_submodule(path)
        if not isinstance(module, SwiGLUExperts) and (problem := experts_problem(module)):
            raise SkillError(
                f"{self._where} adapts {address}, but the experts at {path} cannot be: {problem}"
            )
        stack, half = _PLACES[match["name"]]
        number, weight = int(match["number"]), self._weight(path, stack)
        rows = weight.shape[1] // (2 if stack == 0 else 1)
        if number >= weight.shape[0]:
            raise SkillError(f"{self._where} adapts {address}, but {path} has {weight.shape[0]} experts")
        if (made.out_features, made.in_features) != (rows, weight.shape[2]):
            raise SkillError(
                f"{self._where} does not fit the base at {address}: {made.in_features} → {made.out_features} "
                f"against {weight.shape[2]} → {rows}"
            )
        experts = self._found.setdefault((path, stack), {})
        experts.setdefault(number, []).append((half * rows, made))

    def joined(self) -> dict[str, Factors]:
        """Address of each stack → its factors, in the order in which a module registers its stacks."""
        return {
            f"{path}.{self._name(path, stack)}": _joined(self._weight(path, stack), experts)
            for (path, stack), experts in sorted(self._found.items(), key=lambda item: item[0][1])
        }

    def _path(self, experts: str) -> str | None:
        """Dotted name of the module in the base that holds the stacks of the adapter's `experts`.

        transformers 5 also renamed the block around some experts (`block_sparse_moe.experts` to
        `mlp.experts`), so any name will do for it if only one block of the layer has experts.
        """
        assert self._base is not None
        if _has_stacks(submodule(self._base, experts)):
            return experts
        block, _, own = experts.rpartition(".")
        pattern = re.compile(rf"{re.escape(block.rpartition('.')[0])}\.[^.]+\.{re.escape(own)}")
        modules = self._base.named_modules()
        found = [name for name, module in modules if pattern.fullmatch(name) and _has_stacks(module)]
        return found[0] if len(found) == 1 else None

    def _name(self, path: str, stack: int) -> str:
        assert self._base is not None
        return stacks_of(self._base.get_submodule(path))[stack]

    def _weight(self, path: str, stack: int) -> Tensor:
        assert self._base is not None
        return self._base.get_parameter(f"{path}.{self._name(path, stack)}")


def _has_stacks(module: nn.Module | None) -> bool:
    return module is not None and (isinstance(module, SwiGLUExperts) or is_foreign_experts(module))


def _joined(weight: Tensor, experts: dict[int, list[tuple[int, Factors]]]) -> Factors:
    """Join the factors of a stack, block diagonal in the ranks of its layers; zero for experts without any.

    Args:
        weight: the stack `[E, out, in]`.
        experts: number of the expert → (first row of the layer's weight, its factors).
    """
    every: Sequence[Factors] = [made for layers in experts.values() for _, made in layers]
    rank = max(sum(made.rank for _, made in layers) for layers in experts.values())
    scalings = {made.scaling for made in every}
    dtype = every[0].A.dtype
    for made in every[1:]:
        dtype = torch.promote_types(dtype, made.A.dtype)
    down = torch.zeros(weight.shape[0], rank, weight.shape[2], dtype=dtype)
    up = torch.zeros(weight.shape[0], weight.shape[1], rank, dtype=dtype)
    for number, layers in experts.items():
        at = 0
        for row, made in sorted(layers, key=lambda layer: layer[0]):
            down[number, at : at + made.rank] = made.A
            # A stack has one scaling; different scalings of its layers are multiplied into B.
            factor = 1.0 if len(scalings) == 1 else made.scaling
            up[number, row : row + made.out_features, at : at + made.rank] = made.B * factor
            at += made.rank
    return Factors(A=down, B=up, scaling=scalings.pop() if len(scalings) == 1 else 1.0)
