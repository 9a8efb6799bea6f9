"""Loss-free balancing: after each step the routers' biases move against the loads of that step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from expertise.mixture.mixture import Mixture
from expertise.mixture.routers.learned import LearnedRouter
from expertise.mixture.routes import Routes


class LossFreeBalance:
    """Counts the tokens of each part over a step, then moves the biases (arXiv 2408.15664, Algorithm 1).

    A count is the number of tokens that take a part: under top-p a token that takes n parts counts n times,
    for it is the work of a part that is evened out, not its share of the choice.

    Args:
        mixtures: all mixtures of a model, in the order in which their routes will be given; those whose
            router has no bias are passed over.
    """

    def __init__(self, mixtures: Iterable[Mixture]) -> None:
        routers = (mixture.router for mixture in mixtures)
        self._routers = [r if isinstance(r, LearnedRouter) and r.bias is not None else None for r in routers]
        self._counts: list[Tensor | None] = [None for _ in self._routers]

    def begin(self) -> None:
        """Start a step; counts that were never applied are dropped."""
        self._counts = [None for _ in self._routers]

    def count(self, layers: Sequence[Routes]) -> None:
        """Add the routes of one micro-batch, one `Routes` per mixture."""
        for index, (router, routes) in enumerate(zip(self._routers, layers, strict=True)):
            if router is not None:
                before, found = self._counts[index], routes.chosen().sum(0)
                self._counts[index] = found if before is None else before + found

    def apply(self) -> None:
        """Move the biases by the counts since `begin`, summed over all ranks."""
        for router, counts in zip(self._routers, self._counts, strict=True):
            if router is not None and counts is not None:
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.all_reduce(counts)
                router.rebalance(counts)
        self.begin()
