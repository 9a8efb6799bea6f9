"""The state of one call of a composed model: its mask and cache, and its alpha."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from expertise.errors import SkillError
from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.mixture.routes import Routes


@dataclasses.dataclass
class Call:
    """The state of one call of a composed model: its mask and cache, and its alpha."""

    mask: Any = None
    """Attention mask of the call, if it has one."""
    cache: Any = None
    """Key-value cache of the call, if it has one."""
    documents: Tensor | None = None
    """Number of each token's document, if a row holds several documents."""
    is_given: bool = False
    """True if the caller set alpha, so that no router is asked."""
    constant: Tensor | None = None
    """Alpha `[K]`, if it is the same for all tokens."""
    routes: Routes | None = None
    """Alpha as routes; None: every weight is zero."""
    shape: tuple[int, ...] = (1,)
    """Leading shape that alpha was computed for: `(1,)`, `(rows,)` or `(rows, tokens)`."""
    spread: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Cache of alpha expanded to layers' shapes: as routes, or as weights of ranks."""
    stands: bool = False
    """True if other calls reuse this call's alpha."""
    most: int = 0
    """Largest number of tokens that a layer saw; counted while recording."""
    layers: list[tuple[tuple[int, ...], Routes]] = dataclasses.field(default_factory=list)
    """Routes of single layers' routers, with the skills that these layers have; kept while recording."""

    def take(self, routes: Routes | None, shape: Sequence[int] = (1,)) -> None:
        """Set alpha, and drop everything that was computed from the previous one."""
        self.routes, self.shape, self.spread = routes, tuple(shape), {}

    def give(self, weights: Tensor | None, device: torch.device) -> None:
        """Set alpha `[..., K]` that the caller gave; None: zero."""
        if weights is None:
            return
        if weights.ndim == 1:
            # On the CPU this does not wait for a device.
            if weights.device.type == "cpu" and not weights.requires_grad and not weights.any():
                return
            self.constant = weights.to(device)
            weights = self.constant[None]
        self.take(Routes.dense(weights.to(device).flatten(0, -2)), weights.shape[:-1])

    def go_on_from(self, other: Call) -> None:
        """Reuse the alpha of another call and everything computed from it."""
        self.is_given, self.constant, self.stands = other.is_given, other.constant, other.stands
        self.routes, self.shape, self.spread = other.routes, other.shape, other.spread

    def seen_by(self, leading: Sequence[int], columns: tuple[int, ...] | None) -> Routes | None:
        """Alpha for a layer whose input has this leading shape; see `Composition.routes`."""
        if self.routes is None:
            return None
        key = (tuple(leading), columns)
        if key not in self.spread:
            with self._apart():
                routes = self.routes.each(self._times(leading))
                if columns is not None:
                    chosen = torch.tensor(columns, device=routes.gates.device)
                    routes = Routes.dense(routes.weights().index_select(1, chosen))
            self.spread[key] = routes
        return self.spread[key]  # type: ignore[no-any-return]

    def ready(
        self, leading: Sequence[int], columns: tuple[int, ...] | None, skills: LowRankExperts
    ) -> Tensor | Routes | None:
        """Alpha prepared for the skills of a layer; layers that are alike share the result.

        Returns:
            Weights of ranks for `LowRankExperts.onto`: one row if alpha is constant, else one per token.
            Routes if it is faster to compute only the chosen skills. None: every weight is zero.
        """
        if self.routes is None:
            return None
        own: dict[str, Any] = skills._parameters
        key = (leading, columns, skills.layout, own["lora_A"].dtype)
        found = self.spread.get(key)
        if found is None:
            with self._apart():
                found = self.spread[key] = self._made_ready(leading, columns, skills)
        return found

    def _apart(self) -> contextlib.AbstractContextManager[Any]:
        """Context for values that the first layer computes and later layers reuse."""
        if self.stands:
            # Other calls reuse these tensors, perhaps in training, so they must not be inference tensors.
            return torch.inference_mode(False)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A recomputed layer finds these tensors in the cache: its checkpoint must not count them.
            return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
        return contextlib.nullcontext()

    def _made_ready(
        self, leading: Sequence[int], columns: tuple[int, ...] | None, skills: LowRankExperts
    ) -> Tensor | Routes | None:
        assert self.routes is not None
        if columns is None and not skills.is_dense_for(self.routes):
            return self.seen_by(leading, columns)
        gates = self.routes.weights()
        if columns is not None:
            gates = gates.index_select(1, torch.tensor(columns, device=gates.device))
        times = 1 if self.constant is not None else self._times(leading)
        weights = skills.weigh(gates)
        return weights if times == 1 else weights.repeat_interleave(times, 0)

    def table(self, num_skills: int, device: torch.device) -> Tensor:
        """Alpha of a recorded call, `[tokens, K]`; with a router per layer, the mean over these layers."""
        if not self.layers:
            if self.routes is None:
                return torch.zeros(self.most, num_skills, device=device)
            routes = self.routes.each(max(1, self.most // max(1, self.routes.num_tokens)))
            return routes.weights().detach().float()
        most = max(routes.num_tokens for _, routes in self.layers)
        total, layers = torch.zeros(most, num_skills, device=device), torch.zeros(num_skills, device=device)
        for columns, routes in self.layers:
            # Layers that see fewer tokens than the others are left out.
            if routes.num_tokens == most:
                index = torch.tensor(columns, device=device)
                total.index_add_(1, index, routes.weights().detach().float())
                layers.index_add_(0, index, torch.ones(len(columns), device=device))
        return total / layers.clamp(min=1)

    def _times(self, leading: Sequence[int]) -> int:
        """Number of consecutive tokens that share one choice; the batch is always the slowest dimension."""
        choices, tokens = math.prod(self.shape), math.prod(leading)
        if choices == 1:
            return tokens
        first = leading[0] if leading else 1
        if len(self.shape) == 1:
            fits = choices > 0 and first % choices == 0
        else:
            fits = tuple(leading[: len(self.shape)]) == self.shape or first == choices
        if not fits and (choices or tokens):
            raise SkillError(
                f"weights for {_of(self.shape)} do not fit a layer that sees {_of(tuple(leading))}",
                "rows and tokens must be those of the call; layers that see no rows cannot be told apart",
            )
        return tokens // choices if choices else 1


def _as_it_is(saved: Tensor) -> Tensor:
    return saved


def _of(shape: tuple[int, ...]) -> str:
    return f"shape {list(shape)}" if len(shape) != 1 else f"{shape[0]} rows"
