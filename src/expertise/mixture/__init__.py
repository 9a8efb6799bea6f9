"""The one idea: `y = always(x) + sum of gate_i(context) * part_i(x)`.

Reading order: `routes.py` (who does what), `mixture.py` (the sum), `routers/top_p.py` (a router),
`parts/swiglu.py` (a kind of part), `dispatch/grouped.py` (how the sum is computed fast).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.mixture.mixture import Mixture, recording
    from expertise.mixture.parts import PARTS
    from expertise.mixture.parts.base import Parts
    from expertise.mixture.parts.low_rank import LowRankExperts
    from expertise.mixture.parts.swiglu import SwiGLU, SwiGLUExperts
    from expertise.mixture.routers import ROUTERS
    from expertise.mixture.routers.base import Router
    from expertise.mixture.routers.context import Context
    from expertise.mixture.routers.fixed import Fixed
    from expertise.mixture.routers.hash import Hash
    from expertise.mixture.routers.top_k import TopK
    from expertise.mixture.routers.top_p import TopP
    from expertise.mixture.routes import Routes

__all__ = [
    "PARTS",
    "ROUTERS",
    "Context",
    "Fixed",
    "Hash",
    "LowRankExperts",
    "Mixture",
    "Parts",
    "Router",
    "Routes",
    "SwiGLU",
    "SwiGLUExperts",
    "TopK",
    "TopP",
    "recording",
]

public_names(
    __name__,
    {
        "mixture": (
            "Mixture",
            "recording",
        ),
        "parts": ("PARTS",),
        "parts.base": ("Parts",),
        "parts.low_rank": ("LowRankExperts",),
        "parts.swiglu": (
            "SwiGLU",
            "SwiGLUExperts",
        ),
        "routers": ("ROUTERS",),
        "routers.base": ("Router",),
        "routers.context": ("Context",),
        "routers.fixed": ("Fixed",),
        "routers.hash": ("Hash",),
        "routers.top_k": ("TopK",),
        "routers.top_p": ("TopP",),
        "routes": ("Routes",),
    },
)
