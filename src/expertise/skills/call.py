"""One call of a composed model: what it brought along, and the alpha that came of it."""

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
    """One call of a composed model: what it brought along, and the alpha that came of it."""

    mask: Any = None
    """Its attention mask, where it has one."""
    cache: Any = None
    """Its cache of keys and values, where it has one."""
    documents: Tensor | None = None
    """The number of each token's document, where a row holds several."""
    is_given: bool = False
    """Whether the call named alpha itself, so that no router is asked."""
    constant: Tensor | None = None
    """Alpha `[K]`, where it is one for all tokens."""
    routes: Routes | None = None
    """Alpha; None: every weight is zero."""
    shape: tuple[int, ...] = (1,)
    """Leading shape of what alpha was made for: `(1,)`, `(rows,)` or `(rows, tokens)`."""
    spread: dict[Any, Any] = dataclasses.field(default_factory=dict)
    """Alpha as layers of some shape see it: as routes, or as weights of ranks."""
    stands: bool = False
    """Whether other calls go on from it."""
    most: int = 0
    """The most tokens that a layer saw; counted while recording."""
    layers: list[tuple[tuple[int, ...], Routes]] = dataclasses.field(default_factory=list)
    """What routers of single layers chose, with the skills that they know; kept while recording."""

    def take(self, routes: Routes | None, shape: Sequence[int] = (1,)) -> None:
        """From here on this is alpha."""
        self.routes, self.shape, self.spread = routes, tuple(shape), {}

    def give(self, weights: Tensor | None, device: torch.device) -> None:
        """Alpha `[..., K]` that is known before anything is computed; None: zero."""
        if weights is None:
            return
        if weights.ndim == 1:
            # Known here without waiting for a device: these came from Python or are few.
            if weights.device.type == "cpu" and not weights.requires_grad and not weights.any():
                return
            self.constant = weights.to(device)
            weights = self.constant[None]
        self.take(Routes.dense(weights.to(device).flatten(0, -2)), weights.shape[:-1])

    def go_on_from(self, other: Call) -> None:
        """Take the alpha of another call, and what was made ready of it."""
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
        """Alpha made ready for the skills of a layer, once for all layers that are alike.

        Returns:
            Weights of ranks for `LowRankExperts.onto`: one row where alpha is constant, else one per token.
            Routes where bringing tokens to their skills is faster. None: every weight is zero.
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
        """Around what is made once, by whichever layer comes first, and used by others later."""
        if self.stands:
            # Other calls, maybe in training, go on from this one: no tensors of inference mode then.
            return torch.inference_mode(False)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A checkpointed layer that is computed again finds this made: a checkpoint must not count it.
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
        """Alpha of a recorded call, `[tokens, K]`: of all layers, or the mean over those that chose."""
        if not self.layers:
            if self.routes is None:
                return torch.zeros(self.most, num_skills, device=device)
            routes = self.routes.each(max(1, self.most // max(1, self.routes.num_tokens)))
            return routes.weights().detach().float()
        most = max(routes.num_tokens for _, routes in self.layers)
        total, layers = torch.zeros(most, num_skills, device=device), torch.zeros(num_skills, device=device)
        for columns, routes in self.layers:
            # A layer that sees other tokens than most has nothing to say about these.
            if routes.num_tokens == most:
                index = torch.tensor(columns, device=device)
                total.index_add_(1, index, routes.weights().detach().float())
                layers.index_add_(0, index, torch.ones(len(columns), device=device))
        return total / layers.clamp(min=1)

    def _times(self, leading: Sequence[int]) -> int:
        """How many tokens in a row share one choice. Rows of a batch are the slowest dimension everywhere."""
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
