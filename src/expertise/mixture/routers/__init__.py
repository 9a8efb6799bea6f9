"""Routers: who chooses. To add one, write its module and add a line here."""

from __future__ import annotations

from expertise.mixture.routers.configs import ContextKind, RouterConfig
from expertise.registry import Registry

ROUTERS = Registry(
    "router",
    {
        "top_k": "expertise.mixture.routers.top_k:TopK",
        "top_p": "expertise.mixture.routers.top_p:TopP",
        "hash": "expertise.mixture.routers.hash:Hash",
        "context": "expertise.mixture.routers.context:Context",
        "fixed": "expertise.mixture.routers.fixed:Fixed",
    },
    configs="expertise.mixture.routers.configs",
)


def context_kind_of(config: RouterConfig) -> ContextKind:
    """The context that a router of this configuration wants; most configurations say it without torch."""
    found: ContextKind | None = getattr(config, "context_kind", None)
    return found or ROUTERS[config.name].context_kind
