"""A composed network for acting: alpha is worked in once, for all steps of the sampler and all candidates."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.shapes import Float
from expertise.skills.adapted import Adapted
from expertise.skills.clone import clone, replace
from expertise.skills.composition import composition_of


class SteeredNetwork:
    """A further tree over the storage of a composed network, lean enough for a single state.

    It computes what the network does with `weights=`, without gradients. Several calls share one alpha here,
    so nothing is asked or looked up between them; for few rows that is most of the time.

    Args:
        network: composed of linear layers alone.
    """

    def __init__(self, network: nn.Module) -> None:
        root = clone(network)
        self._layers: list[_Steered] = []
        stand_ins: dict[nn.Module, nn.Module] = {}
        for address, adapted in composition_of(network).adapted.items():
            assert isinstance(adapted, Adapted)
            layer = _Steered(adapted)
            self._layers.append(layer)
            stand_ins[root.get_submodule(address)] = layer
        replace(root, stand_ins)
        # By the class, so that what tells a composition of each call is not called.
        self.forward: Callable[..., Tensor] = functools.partial(type(root).forward, root)
        """The network, with what `steer` set; its arguments are the base's own."""

    def steer(self, weights: Float[Tensor, "states skills"], each: int = 1) -> None:
        """Set alpha for the calls that follow.

        Args:
            weights: alpha of each state.
            each: so many rows of a call, one after another, belong to each state.
        """
        ready: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        for layer in self._layers:
            key = layer.skills.layout, layer.columns
            if key not in ready:
                # A layer numbers only the skills that it has.
                own = weights if len(layer.columns) == weights.shape[1] else weights[:, layer.columns]
                ranks = layer.skills.weigh(own)
                # The weights of a single state are worked into B.
                alone = each == 1 or weights.shape[0] == 1
                ready[key] = ranks if alone else ranks.repeat_interleave(each, dim=0)
            layer.steer(ready[key])


class _Steered(nn.Module):
    """A linear layer with skills whose weights are set beforehand."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__()
        layer = adapted.mixture.always
        assert isinstance(layer, nn.Linear)
        self.columns = adapted.columns
        # Not children: they stand in the composed network, and what is a module's own is slow to find.
        self.__dict__["skills"] = adapted.parts
        self.__dict__["layer"] = layer

    skills: LowRankExperts
    layer: nn.Linear

    def steer(self, ranks: Float[Tensor, "rows_or_one ranks"]) -> None:
        """Set the weights of the ranks."""
        bias = None if self.layer.bias is None else self.layer.bias.detach()
        self._own = self.layer.weight.detach(), bias, self.skills.fixed(ranks)

    def forward(self, x: Tensor) -> Tensor:
        """`W_0 x + b`, and the sum of the skills."""
        weight, bias, skills = self._own
        return skills.onto(F.linear(x, weight, bias), x)
