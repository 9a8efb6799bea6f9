"""alpha(s): how much each skill, or each policy, counts at a state. Any router over them gives it.

The defaults that hold for policies stand here, and so does what version 0.1.0 wrote otherwise.
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
"""Widths of the release's network."""

ALPHA = Choice(
    ROUTERS,
    default="context",
    preset={
        # PSEC's context-aware module (arXiv 2502.05932, §4.2), from constant weights on.
        "context": {"hidden": _HIDDEN, "start": []},
        # Ours: only the skills that together hold a share p of the probability, or none of them.
        "top_p": {"p": 0.7, "hidden": _HIDDEN, "nothing": True},
    },
    # Version 0.1.0 had a top-p of its own here.
    renamed={"strength": "scale"},
)
"""A router over skills or policies, and what its keys are where a recipe leaves them out."""


def weights_of(alpha: Router, seen: Float[Tensor, "states observations"]) -> Float[Tensor, "states parts"]:
    """The weights at each state; `seen` is on the policy's scale of observations."""
    return ask(alpha, seen).weights()


def name_now(name: str) -> str:
    """A weight's name today: version 0.1.0 had its routers one level deeper, as `alpha.router`."""
    return re.sub(r"(^|\.)alpha\.router\.", r"\1alpha.", name)


def name_before(name: str) -> str:
    """A weight's name in version 0.1.0. Digests take weights in the order of these: so its runs go on."""
    return re.sub(r"(^|\.)alpha\.weight$", r"\1alpha.router.weight", name)
