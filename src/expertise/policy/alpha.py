"""Routers for alpha(s): the weight of each skill, or of each policy, at a state.

This file has the defaults for policies, and the names that version 0.1.0 used.
"""

from __future__ import annotations

import re

from torch import Tensor

from expertise.mixture.routers import ROUTERS
from expertise.mixture.routers.base import Router
from expertise.runs.recipe import Choice
from expertise.shapes import Float
from expertise.skills.routing import ask

_HIDDEN = [256, 256]
"""Hidden widths of the release's network."""

ALPHA = Choice(
    ROUTERS,
    default="context",
    preset={
        # PSEC's context-aware module (arXiv 2502.05932, §4.2), starting from constant weights.
        "context": {"hidden": _HIDDEN, "start": []},
        # Ours: only the skills that together hold a share p of the probability, or none of them.
        "top_p": {"p": 0.7, "hidden": _HIDDEN, "nothing": True},
    },
    # Version 0.1.0 had a top-p of its own here.
    renamed={"strength": "scale"},
)
"""Routers over skills or policies, with the defaults of their keys for policies."""


def weights_of(alpha: Router, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
    """Return the weights at each state; `seen` are normalised observations."""
    return ask(alpha, seen).weights()


def name_now(name: str) -> str:
    """Convert a weight's name from version 0.1.0, where routers were one level deeper (`alpha.router`)."""
    return re.sub(r"(^|\.)alpha\.router\.", r"\1alpha.", name)


def name_before(name: str) -> str:
    """Convert a weight's name to version 0.1.0; digests use these names and their order, so runs resume."""
    return re.sub(r"(^|\.)alpha\.weight$", r"\1alpha.router.weight", name)
