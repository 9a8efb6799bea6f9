"""`Mixture`, the only module that adds parts up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from expertise.errors import RecipeError
from expertise.mixture.dispatch import DISPATCHES
from expertise.mixture.parts.base import Parts
from expertise.mixture.routers.base import Router
from expertise.mixture.routes import Routes
from expertise.shapes import Float


class Mixture(nn.Module):
    """`y = always(x) + sum over the chosen parts of gate_i * part_i(x)`.

    DeepSeekMoE (arXiv 2401.06066, Eqs. 9-11, without the residual, which the block adds) when `always` holds
    the shared experts and the router is `TopK`; Dynamic MoE (arXiv 2403.07652) with `TopP`; PSEC
    (arXiv 2502.05932) when `always` is a frozen layer and the parts are low-rank skills. No token is dropped.

    Args:
        router: chooses the parts; None when routes are always given to `forward`.
        parts: the parts to choose from, all of one kind, stacked.
        always: any module with the parts' input and output width, added with weight 1; None for nothing.
        dispatch: "auto" ("dense" for dense routes and wherever the parts say that it is faster, else
            "grouped"), or a name from `DISPATCHES`.

    Raises:
        RecipeError: router and parts disagree about their number, or the dispatch is unknown.
    """

    def __init__(
        self,
        router: Router | None,
        parts: Parts,
        always: nn.Module | None = None,
        *,
        dispatch: str = "auto",
    ) -> None:
        super().__init__()
        if router is not None and router.num_parts != parts.num_parts:
            raise RecipeError(
                f"the router chooses from {router.num_parts} parts, there are {parts.num_parts}"
            )
        if dispatch != "auto":
            DISPATCHES[dispatch]
        self.router = router
        self.parts = parts
        self.always = always
        self.dispatch = dispatch
        self.last_routes: Routes | None = None
        self._recording = False

    def forward(
        self,
        x: Float[Tensor, "*leading in_features"],
        context: Any = None,
        routes: Routes | None = None,
    ) -> Float[Tensor, "*leading out_features"]:
        """Compute the sum for each token.

        Args:
            x: tokens in any leading shape; the router and the parts see them flattened, in order.
            context: a further input of the router (token ids, a context vector); most routers need none.
            routes: use these instead of calling the router; several layers may share them.

        Returns:
            A tensor of x's leading shape and dtype; the last dimension is that of the parts' output.
        """
        if routes is None:
            if self.router is None:
                raise RecipeError("this mixture has no router: give it routes")
            routes = self.router(x, context)
        self.note(routes)
        tokens = x.reshape(-1, x.shape[-1])
        if routes.num_tokens != tokens.shape[0] or routes.num_parts != self.parts.num_parts:
            raise RecipeError(
                f"the routes are for {routes.num_tokens} tokens over {routes.num_parts} parts; "
                f"here are {tokens.shape[0]} tokens and {self.parts.num_parts} parts"
            )
        name = self.dispatch
        if name == "auto":
            name = "dense" if self.parts.is_dense_for(routes) else "grouped"
        carried = self.parts.carry(tokens)
        if name == "dense" and self.always is not None:
            always: Tensor = self.always(x)
            flat = always.reshape(-1, self.parts.out_features)
            y = self.parts.dense_onto(flat, carried, routes.weights())
            return y.reshape(always.shape).to(x.dtype)
        y = DISPATCHES[name](carried, routes, self.parts)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if self.always is None else self.always(x) + y  # type: ignore[no-any-return]

    def note(self, routes: Routes) -> None:
        """Keep this call's routes if a recording is on."""
        if self._recording:
            self.last_routes = routes

    @contextlib.contextmanager
    def recording(self) -> Iterator[Mixture]:
        """Keep each call's routes, graph included, in `last_routes` while this context is open.

        The last record stays there afterwards; the next recording starts by dropping it.
        """
        before, self._recording, self.last_routes = self._recording, True, None
        try:
            yield self
        finally:
            self._recording = before

    def __getstate__(self) -> dict[str, Any]:
        # Recorded routes belong to one call: a copy of the module starts without them (and could not
        # copy tensors that are inside a graph).
        return {**self.__dict__, "last_routes": None, "_recording": False}

    @override
    def extra_repr(self) -> str:
        return f"dispatch={self.dispatch!r}"


@contextlib.contextmanager
def recording(model: nn.Module) -> Iterator[list[Mixture]]:
    """Record the routes of every mixture inside a model.

    Args:
        model: any module.

    Yields:
        Its mixtures in the order of the modules; each one's `last_routes` holds its latest call.
    """
    mixtures = [module for module in model.modules() if isinstance(module, Mixture)]
    with contextlib.ExitStack() as stack:
        for mixture in mixtures:
            stack.enter_context(mixture.recording())
        yield mixtures
