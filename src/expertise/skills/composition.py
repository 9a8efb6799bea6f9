"""`Composition`: the weights of a composed model's skills, call by call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from expertise.errors import SkillError
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import RouterConfig
from expertise.mixture.routes import Routes
from expertise.skills.adapted import Adapted, Slot
from expertise.skills.call import Call
from expertise.skills.clone import Shared
from expertise.skills.composed_json import Reads
from expertise.skills.experts import AdaptedExperts
from expertise.skills.given import as_table, as_weights, of_rows, one_of
from expertise.skills.pooling import RunningMean
from expertise.skills.routing import ask


class Composition(nn.Module):
    """The weights alpha of K skills, for every adapted layer of one model.

    Args:
        base: what the skills were put beside.
        names: the skills.
        router: makes alpha from what it reads; None: `weights`, or what a call gives.
        reads: what the router sees; "layer" leaves the routers to the layers.

    Attributes:
        adapted: address → adapted layer; experts stand under their module's address.
        router_config: what the router was built from; None: it was given as a module, or there is none.
        source: the module whose output the router reads; None: the input embedding.
    """

    def __init__(self, base: nn.Module, names: Sequence[str], router: Router | None, reads: Reads) -> None:
        super().__init__()
        self.names = tuple(names)
        self._base = Shared(base)
        self.router = router
        self.reads = reads
        self.adapted: dict[str, Adapted | AdaptedExperts] = {}
        self.router_config: RouterConfig | None = None
        self.source: str | None = None
        self.is_recording = False
        self._default: Tensor | None = None
        self._fixed: dict[str, Any] = {}
        self._standing: Call | None = None
        self._call = Call()
        self._recorded: Call | None = None
        self._mean = RunningMean()

    # Settings for callers.

    def set_weights(self, weights: Sequence[float] | Mapping[str, float] | None) -> None:
        """Set constant weights for calls that give none; None or all zero: the base's own output.

        Raises:
            SkillError: not one finite number per skill, or the model has a router.
        """
        if weights is not None and (self.router is not None or self.reads == "layer"):
            raise SkillError("this model has a router: give weights with the call, or compose without one")
        self._default = None if weights is None else self.as_weights(weights)
        self._standing, self._call = None, Call()
        self._call.give(self._default, self.device)

    def default_weights(self) -> Tensor:
        """The constant weights `[K]` that apply to calls without weights of their own."""
        return torch.zeros(len(self.names)) if self._default is None else self._default

    @property
    def base(self) -> nn.Module:
        """The unchanged base that the skills were added to."""
        return self._base.module

    def as_weights(self, weights: Any) -> Tensor:
        """Convert named or ordered weights to a vector `[K]`, float32; see `given.as_weights`."""
        return as_weights(weights, self.names)

    @contextlib.contextmanager
    def using(self, **given: Any) -> Iterator[None]:
        """Use this `weights=`, `skills=` or `context=` in calls that give none, while the context is open.

        For calls that cannot pass it on, such as a `generate` that checks its arguments; and faster where
        many calls share their alpha, which is made ready once. Weights count as they are on entering.
        """
        before = self._fixed, self._standing
        self._fixed = {
            key: value.clone() if isinstance(value, Tensor) else value for key, value in one_of(given).items()
        }
        self._standing = None
        try:
            yield
        finally:
            self._fixed, self._standing = before

    @contextlib.contextmanager
    def recording(self) -> Iterator[Composition]:
        """Record the weights that every layer uses in each call, for `alpha`, while the context is open.

        The last record stays there afterwards; the next recording starts by dropping it.
        """
        before, self.is_recording, self._recorded = self.is_recording, True, None
        try:
            yield self
        finally:
            self.is_recording = before

    def alpha(self) -> Tensor:
        """Weights of the skills in the last recorded call: `[tokens, K]`, float32, the base's rows in order.

        Where every layer has its own router: each skill's mean over the layers that have it.

        Raises:
            SkillError: nothing was recorded.
        """
        if self._recorded is None:
            raise SkillError("no call was recorded: call the model inside `with composition.recording():`")
        return self._recorded.table(len(self.names), self.device)

    def routers(self) -> dict[str, Router]:
        """All routers: one under the name "", or the layers' own routers under their addresses."""
        if self.router is not None:
            return {"": self.router}
        own = {
            address: layer.mixture.router if isinstance(layer, Adapted) else layer.router
            for address, layer in self.adapted.items()
        }
        return {address: router for address, router in own.items() if router is not None}

    def slots(self) -> Iterator[tuple[str, Slot]]:
        """Address of each adapted weight, and the factors of each skill on it as views."""
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

    # Steps of each call of the model, called by its hooks and layers.

    def start(self, call: Call, given: Mapping[str, Any]) -> None:
        """Begin a call: set its alpha from the given weights, or leave it to the router.

        Args:
            call: state of the call, with its mask and cache.
            given: `weights`, `skills` or `context`, at most one of them.
        """
        self._call = call
        if self.is_recording:
            self._recorded = call
        named = one_of(given)
        if named or not self._stands():
            self._choose(call, named or self._fixed)
            return
        standing = self._standing
        if standing is None or (standing.routes and standing.routes.gates.device != self.device):
            standing = self._standing = Call(stands=True)
            self._choose(standing, self._fixed)
        call.go_on_from(standing)

    def _stands(self) -> bool:
        """True if calls without weights of their own share one alpha that needs no gradient."""
        weights = self._fixed.get("weights")
        if isinstance(weights, Tensor) and weights.requires_grad:
            return False
        return "context" not in self._fixed and (self.router is None or bool(self._fixed))

    def _choose(self, call: Call, given: Mapping[str, Any]) -> None:
        """Set alpha of a call from the given weights, the router, or the default."""
        call.is_given = "weights" in given or "skills" in given
        if "weights" in given:
            call.give(as_table(given["weights"], self.names), self.device)
        elif "skills" in given:
            call.give(of_rows(given["skills"], self.names), self.device)
        elif self.router is None or self.reads != "context":
            if "context" in given:
                raise SkillError("this model has no router that reads a context")
            if self.router is None:
                call.give(self._default, self.device)
        else:
            context = given.get("context")
            if not isinstance(context, Tensor):
                raise SkillError(
                    "this model's router reads a context: model(..., context=vectors)",
                    "where that cannot be passed on: with model.composition.using(context=vectors):",
                )
            call.take(ask(self.router, context), context.shape[:-1])

    def finish(self, output: Any) -> None:
        """End a call: keep the running mean for the next one, and drop references to mask and cache."""
        call = self._call
        if self.router is not None and self.reads in ("token", "pooled") and not call.is_given:
            if call.routes is None:
                raise SkillError(
                    "this call did not run the module that the model's router reads",
                    "give token ids, not their embeddings, or compose with another source=",
                )
            if self.reads == "pooled":
                own = getattr(output, "past_key_values", None)
                self._mean.keep(own if call.cache is None else call.cache)
        call.mask = call.cache = call.documents = None

    def read(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the module that the router reads: choose alpha for the layers that follow."""
        call = self._call
        if call.is_given or self.router is None:
            return
        hidden = output[0] if isinstance(output, tuple) else output
        if not (isinstance(hidden, Tensor) and hidden.is_floating_point()):
            raise SkillError(f"the router reads hidden states, not the {type(hidden).__name__} of its source")
        if self.reads == "pooled":
            hidden = self._mean(hidden, call)
        call.take(ask(self.router, hidden), hidden.shape[:-1])

    def routes(self, leading: Sequence[int], columns: tuple[int, ...] | None = None) -> Routes | None:
        """This call's alpha for a layer; None: every weight is zero.

        Args:
            leading: leading shape of the layer's input.
            columns: the skills that the layer has; None: all.

        Raises:
            SkillError: the layer's tokens are not those that alpha was given for.
        """
        if self.is_recording:
            self._call.most = max(self._call.most, torch.Size(leading).numel())
        return self._call.seen_by(leading, None if columns == tuple(range(len(self.names))) else columns)

    def note(self, columns: tuple[int, ...], routes: Routes) -> None:
        """Record the routes of a layer's own router, over the skills that the layer has."""
        if self.is_recording:
            self._call.layers.append((columns, routes))

    @property
    def is_given(self) -> bool:
        """True if the caller set alpha in this call, so that no router is asked."""
        return self._call.is_given

    @property
    def constant(self) -> Tensor | None:
        """Alpha `[K]` of this call, if it is the same for all tokens."""
        return self._call.constant

    @property
    def device(self) -> torch.device:
        """Device of the skills."""
        return next(iter(self.adapted.values())).device

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts without the state of the last call, whose graph could not be copied.
        state = {**self.__dict__, "_call": Call(), "_recorded": None, "is_recording": False, "_fixed": {}}
        return {**state, "_standing": None, "_mean": RunningMean()}

    @override
    def extra_repr(self) -> str:
        return f"skills={list(self.names)}, reads={self.reads!r}"


def composition_of(model: nn.Module) -> Composition:
    """The composition of a composed model.

    Raises:
        SkillError: it is not composed.
    """
    found = model.__dict__.get("composition")
    if not isinstance(found, Composition):
        raise SkillError("this model is not composed of skills")
    return found
