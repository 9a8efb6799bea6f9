"""Routers over skills and over policies: built for the width of what they read, and asked."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, get_args

from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.mixture.routers import context_kind_of
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import ContextKind, RouterConfig
from expertise.mixture.routes import Routes
from expertise.skills.composed_json import Reads


def reads_of(router: Router | RouterConfig | None, reads: Reads | None, source: str | None) -> Reads:
    """What a router sees, where it is said and where it is not.

    Raises:
        SkillError: there is no router, or no hidden state to read.
    """
    if router is None and (reads or source):
        raise SkillError(f"{'reads' if reads else 'source'}= is for a router, and there is none")
    if reads is None:
        by_layer = router is not None and _kind(router) != "a context vector"
        reads = "layer" if by_layer else "context"
    if reads not in get_args(Reads):
        raise SkillError(f"a router reads one of {', '.join(get_args(Reads))}, not {reads!r}")
    if source is not None and reads not in ("token", "pooled"):
        raise SkillError(f'source= is for a router that reads "token" or "pooled", not {reads!r}')
    return reads


def built(router: Router | RouterConfig, width: int | None, num_skills: int) -> Router:
    """A router over so many skills, or policies.

    Args:
        router: a module is taken as it is; a config is built.
        width: of what the router reads; None: not known here.
        num_skills: K.

    Raises:
        SkillError: the router is for another number of skills or another width, or cannot be built.
    """
    if _kind(router) == "token ids":
        name = type(router).__name__.lower() if isinstance(router, Router) else router.name
        raise SkillError(f"a {name} router goes by token ids: it cannot weigh skills")
    if isinstance(router, Router):
        if router.num_parts != num_skills:
            raise SkillError(f"the router decides over {router.num_parts} skills, there are {num_skills}")
        if width is not None:
            _require_width(router, width)
        return router
    router.check(num_skills)
    config: Any = router
    own_width = getattr(config, "context_dim", 0)
    if width is None and not own_width:
        raise SkillError("the width of what the router reads is not known: give a router, not a config")
    if width is not None and own_width:
        # What it reads here is its context, whatever its config says of the width of one.
        config = dataclasses.replace(config, context_dim=width)
    built_router: Router = config.build(width or own_width, num_skills)
    return built_router


def of_layer(router: Router | RouterConfig, width: int, num_skills: int) -> Router:
    """A layer's own router; one that was given as a module is copied, and must fit every layer."""
    return built(copy.deepcopy(router), width, num_skills)


def ask(router: Router, x: Tensor) -> Routes:
    """What a router chooses for x `[…, width]`, which it also gets as its context.

    Raises:
        SkillError: the router reads another width.
    """
    _require_width(router, x.shape[-1])
    return router(x, x)  # type: ignore[no-any-return]


def source_of(root: nn.Module, name: str | None) -> nn.Module:
    """The module whose output a router reads, by its name; None: the first embedding.

    Raises:
        SkillError: there is none.
    """
    if name is not None:
        try:
            return root.get_submodule(name)
        except AttributeError:
            raise SkillError(f"the base has no module {name!r} for the router to read") from None
    for module in root.modules():
        if isinstance(module, nn.Embedding):
            return module
    raise SkillError("the base has no embedding for the router to read: name a module with source=")


def width_of(root: nn.Module, source: nn.Module, guess: bool = False) -> int | None:
    """Width of a module's output where that can be told without running it.

    Args:
        root: the model that it is in.
        source: the module.
        guess: take other modules to be layers, which are as wide as what goes into the first one.
    """
    if isinstance(source, nn.Linear):
        return source.out_features
    if isinstance(source, nn.Embedding):
        return source.embedding_dim
    widths = (m.embedding_dim for m in root.modules() if guess and isinstance(m, nn.Embedding))
    return next(widths, None)


def _require_width(router: Router, width: int) -> None:
    own = router.in_features
    if own is not None and own != width:
        raise SkillError(f"the router reads vectors of width {own}, not {width}")


def _kind(router: Router | RouterConfig) -> ContextKind:
    """What a router wants as its context."""
    return router.context_kind if isinstance(router, Router) else context_kind_of(router)
