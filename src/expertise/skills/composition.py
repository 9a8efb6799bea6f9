"""`Composition`: which weights the skills of a composed model have, call by call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from expertise.errors import SkillError, nearest
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.skills.adapted import Adapted, Slot
from expertise.skills.calls import OURS
from expertise.skills.experts import AdaptedExperts
from expertise.skills.pooling import RunningMean

Reads = Literal["context", "token", "pooled", "layer"]
"""What a router sees. "context": a vector that the caller gives, one per row. "token": the hidden state of
each token. "pooled": the mean of a row's hidden states up to and including each token, so that no token sees
those after it. These three make one choice for all layers. "layer": each adapted layer has its own router,
which sees that layer's input, token by token."""

Row = str | Mapping[str, float] | None
"""The skills of one row of a batch: one by its name, several with weights, or none."""


class Composition(nn.Module):
    """The weights alpha of K skills, for every adapted layer of one model.

    Args:
        base: what the skills were put beside.
        names: the skills.
        router: makes alpha from what it reads; None: `weights`, or what a call gives.
        reads: what the router sees; "layer" leaves the routers to the layers.

    Attributes:
        adapted: address → adapted layer; experts stand under their module's address.
    """

    def __init__(self, base: nn.Module, names: Sequence[str], router: Router | None, reads: Reads) -> None:
        super().__init__()
        if reads not in get_args(Reads):
            raise SkillError(f"a router reads one of {', '.join(get_args(Reads))}, not {reads!r}")
        self.names = tuple(names)
        # Not a child: its parameters are in the tree already, frozen.
        self._base = (base,)
        self.router = router
        self.reads = reads
        self.adapted: dict[str, Adapted | AdaptedExperts] = {}
        self.is_given = False
        self.is_recording = False
        self.constant: Tensor | None = None
        self._default: Tensor | None = None
        self._fixed: dict[str, Any] = {}
        self._routes: Routes | None = None
        self._spread: dict[tuple[int, tuple[int, ...] | None], Routes] = {}
        self._mask: Tensor | None = None
        self._cache: Any = None
        self._mean = RunningMean()

    # What a caller sets.

    def set_weights(self, weights: Sequence[float] | Mapping[str, float] | None) -> None:
        """Constant weights for every call that gives none; None or all zero: the base's own output.

        Raises:
            SkillError: not one finite number per skill, or the model has a router.
        """
        if weights is None:
            self._default = None
        elif self.router is not None or self.reads == "layer":
            raise SkillError("this model has a router: give weights with the call, or compose without one")
        else:
            self._default = self.as_weights(weights)
        self._set(self._default)

    def default_weights(self) -> Tensor:
        """The constant weights `[K]` of calls that give none."""
        return torch.zeros(len(self.names)) if self._default is None else self._default

    @property
    def base(self) -> nn.Module:
        """What the skills were put beside; untouched."""
        return self._base[0]

    def as_weights(self, weights: Sequence[float] | Mapping[str, float]) -> Tensor:
        """Named or ordered weights as a vector `[K]`, float32.

        Raises:
            SkillError: a name is unknown, or there is not one finite number per skill.
        """
        if isinstance(weights, Mapping):
            for name in weights:
                self.index(name)
            weights = [float(weights.get(name, 0.0)) for name in self.names]
        vector = torch.tensor([float(w) for w in weights])
        if len(vector) != len(self.names):
            raise SkillError(f"{len(self.names)} skills need as many weights, not {len(vector)}")
        if not vector.isfinite().all():
            raise SkillError(f"weights of skills must be finite, not {list(weights)}")
        return vector

    def index(self, name: str) -> int:
        """A skill's number.

        Raises:
            SkillError: there is none of this name.
        """
        if name not in self.names:
            raise SkillError(f"this model has no skill {name!r}", nearest(name, self.names))
        return self.names.index(name)

    @contextlib.contextmanager
    def using(self, **given: Any) -> Iterator[None]:
        """Within this context every call gets these of `weights=`, `skills=`, `context=`.

        For calls that cannot pass them on, such as a `generate` that checks its arguments.
        """
        before = self._fixed
        self._fixed = {**before, **_known(given)}
        try:
            yield
        finally:
            self._fixed = before

    @contextlib.contextmanager
    def recording(self) -> Iterator[Composition]:
        """Within this context each call keeps what every layer used, for `alpha`."""
        with contextlib.ExitStack() as stack:
            for layer in self.adapted.values():
                if isinstance(layer, Adapted):
                    stack.enter_context(layer.mixture.recording())
            before, self.is_recording = self.is_recording, True
            try:
                yield self
            finally:
                self.is_recording = before

    def alpha(self) -> Tensor:
        """Weights of the skills in the last recorded call, the mean over layers: `[tokens, K]`, float32.

        Raises:
            SkillError: nothing was recorded.
        """
        found = []
        for layer in self.adapted.values():
            routes = layer.mixture.last_routes if isinstance(layer, Adapted) else layer.last_routes
            columns = layer.columns if isinstance(layer, Adapted) else tuple(range(len(self.names)))
            if routes is not None:
                table = routes.weights().detach().float()
                whole = table.new_zeros(table.shape[0], len(self.names))
                found.append(whole.index_copy(1, torch.tensor(columns, device=table.device), table))
        if not found:
            raise SkillError("no call was recorded: call the model inside `with composition.recording():`")
        most = max(len(table) for table in found)
        return torch.stack([table for table in found if len(table) == most]).mean(0)

    def routers(self) -> dict[str, Router]:
        """Everything that decides alpha: one router under "", or the layers' under their addresses."""
        if self.router is not None:
            return {"": self.router}
        own = {
            address: layer.mixture.router if isinstance(layer, Adapted) else layer.router
            for address, layer in self.adapted.items()
        }
        return {address: router for address, router in own.items() if router is not None}

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Address of a weight, and the factors of each skill on it; views of what the model computes with."""
        for address, layer in self.adapted.items():
            if isinstance(layer, AdaptedExperts):
                for name, slot in layer.slots():
                    yield f"{address}.{name}", slot
                continue
            inner: Any = layer
            while isinstance(inner, Adapted):
                for slot in inner.slots():
                    yield address, slot
                inner = inner.mixture.always

    # What the model's calls do.

    def start(self, given: Mapping[str, Any], mask: Tensor | None, cache: Any) -> None:
        """A call begins: set its alpha from what it gives, or leave that to the router.

        Args:
            given: `weights`, `skills` or `context`, at most one of them.
            mask: the call's attention mask, where it has one.
            cache: the call's key-value cache, where it has one.
        """
        given, self._mask, self._cache = {**self._fixed, **given}, mask, cache
        chosen = [key for key in OURS if given.get(key) is not None]
        if len(chosen) > 1:
            raise SkillError(f"give one of weights, skills and context, not {' and '.join(chosen)}")
        self.is_given = bool({"weights", "skills"} & set(chosen))
        if "weights" in chosen:
            self._set(self._vector(given["weights"]))
        elif "skills" in chosen:
            self._set(self._of_rows(given["skills"]))
        elif self.router is None:
            if "context" in chosen:
                raise SkillError("this model has no router that reads a context")
            self._set(self._default)
        else:
            self._set(None)
            if self.reads == "context":
                context = given.get("context")
                if not isinstance(context, Tensor):
                    raise SkillError("this model's router reads a context: model(..., context=vectors)")
                self._take(self.router(context, context))
            elif "context" in chosen:
                raise SkillError(f"this model's router reads {self.reads}, not a context")

    def _vector(self, weights: Any) -> Tensor | None:
        if not isinstance(weights, Tensor):
            return self.as_weights(weights)
        if weights.shape[-1:] != (len(self.names),):
            raise SkillError(
                f"weights of shape {list(weights.shape)} do not fit {len(self.names)} skills: "
                "[K], [rows, K] or [rows, tokens, K]"
            )
        return weights

    def _of_rows(self, rows: Sequence[Row]) -> Tensor | None:
        if isinstance(rows, str) or not isinstance(rows, Sequence):
            raise SkillError("skills is a list with one entry per row: a name, names with weights, or None")
        table = []
        for row in rows:
            named = {row: 1.0} if isinstance(row, str) else row
            table.append(self.as_weights(named or {}))
        return torch.stack(table) if any(row.any() for row in table) else None

    def _set(self, weights: Tensor | None) -> None:
        """Alpha for this call, `[..., K]`; None: zero."""
        self._spread.clear()
        self.constant = None
        if weights is None:
            self._routes = None
            return
        if weights.ndim == 1:
            # Known here without waiting for a device: these came from Python or are few.
            if weights.device.type == "cpu" and not weights.requires_grad and not weights.any():
                self._routes = None
                return
            self.constant = weights.to(self._device())
            weights = self.constant[None]
        self._routes = Routes.dense(weights.to(self._device()).flatten(0, -2))

    def _take(self, routes: Routes) -> None:
        self._spread.clear()
        self.constant = None
        self._routes = routes

    def read(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the module whose output the router reads: choose for the layers that follow."""
        if self.is_given or self.router is None:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if self.reads == "pooled":
            hidden = self._mean(hidden, self._mask, self._cache)
        self._take(self.router(hidden, hidden))

    def routes(self, num_tokens: int, columns: tuple[int, ...] | None = None) -> Routes | None:
        """This call's routes for a layer that sees so many tokens; None: every weight is zero.

        Args:
            num_tokens: tokens at the layer, a multiple of the rows that alpha was given for.
            columns: the skills that the layer knows; None: all.

        Raises:
            SkillError: the tokens cannot be told apart by row.
        """
        routes = self._routes
        if routes is None:
            return None
        if columns is not None and len(columns) == len(self.names):
            columns = None
        key = (num_tokens, columns)
        if key not in self._spread:
            times, rest = divmod(num_tokens, routes.num_tokens)
            if rest or not times:
                raise SkillError(
                    f"weights for {routes.num_tokens} rows do not fit a layer that sees {num_tokens} tokens"
                )
            spread = routes.each(times)
            if columns is not None:
                chosen = torch.tensor(columns, device=spread.gates.device)
                spread = Routes.dense(spread.weights().index_select(1, chosen))
            self._spread[key] = spread
        return self._spread[key]

    def _device(self) -> torch.device:
        layer = next(iter(self.adapted.values()))
        return next(layer.parameters()).device

    def extra_repr(self) -> str:
        """What printing the module shows of it."""
        return f"skills={list(self.names)}, reads={self.reads!r}"


def _known(given: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in given:
        if key not in OURS:
            raise SkillError(f"unknown argument {key!r}", nearest(key, OURS))
    return given
