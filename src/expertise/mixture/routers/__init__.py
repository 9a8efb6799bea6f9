"""Routers: who chooses. To add one, write its module and add a line here."""

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
