"""Families of feed-forward layers at equal size, all from one reference mixture (DeepSeekMoE §4).

The reference has N full-size experts, of which a token takes K. DeepSeekMoE cuts each into m segments and
keeps K_s segments always on: its expert parameters, total and activated, stay as many as the reference's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le

from expertise.errors import RecipeError, nearest
from expertise.mixture.parts.configs import PartsConfig, SwiGLUConfig, SwiGLUExpertsConfig
from expertise.mixture.routers.configs import HashConfig, RouterConfig, TopKConfig, TopPConfig

FamilyName: TypeAlias = Literal["dense", "hash", "switch", "gshard", "deepseekmoe", "dynamic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward:
    """Router, routed parts and always-on part of a mixture layer; without a router only the last is there."""

    router: RouterConfig | None
    parts: PartsConfig | None
    always: SwiGLUConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilySizes:
    """Counts and widths of one layer. Sizes are in hidden units: one is 3 * dim parameters of a SwiGLU."""

    num_parts: int
    """Number of routed experts; 0: nothing is routed."""
    parts_per_token: float
    """Routed experts per token; for top-p, the number at which the layer is as large as the reference."""
    part_hidden: int
    """Hidden width of a routed expert; 0 if there is none."""
    always_hidden: int
    """Hidden width of the always-on part."""
    intended_total: float
    """Hidden units of the layer in all, before widths were rounded."""
    intended_activated: float
    """Hidden units that a token activates, before widths were rounded."""

    def num_params(self, dim: int) -> int:
        """Return the expert parameters of a layer of width `dim`, routed and always on, without centroids."""
        return 3 * dim * (self.num_parts * self.part_hidden + self.always_hidden)

    def num_active_params(self, dim: int) -> int:
        """Return the expert parameters that a token activates."""
        return round(3 * dim * (self.parts_per_token * self.part_hidden + self.always_hidden))

    def differences(self, dim: int) -> dict[str, float]:
        """Return the differences that rounding the widths made: actual minus intended.

        Returns:
            `total` and `activated` in parameters, `total_percent` and `activated_percent` of what was
            intended. All are 0 where the widths divide without rest.
        """
        total, activated = 3 * dim * self.intended_total, 3 * dim * self.intended_activated
        more, more_activated = self.num_params(dim) - total, self.num_active_params(dim) - activated
        return {
            "total": more,
            "total_percent": 100 * more / total,
            "activated": more_activated,
            "activated_percent": 100 * more_activated / activated,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """One family of layers, with the reference mixture that sets its size.

    | family | routed (a token takes) | always on |
    |---|---|---|
    | `dense` | none | `multiple` full-size experts |
    | `hash` | N full-size (1, fixed by token id) | none |
    | `switch` | N full-size (1) | none |
    | `gshard` | N, `widen` times full size (K) | none |
    | `deepseekmoe` | mN - K_s of width hidden / m (mK - K_s) | K_s of width hidden / m |
    | `dynamic` | as `deepseekmoe`, but as many as it takes to pass `p` | as `deepseekmoe` |

    Gates are the papers': raw probabilities, not normalised, scale 1. With m = 1 and K_s = 0 `dynamic` is the
    model of Dynamic MoE and `deepseekmoe` is `gshard`. Changing `name` alone gives another family from the
    same recipe: only families that are cut into segments use `segments` and `shared`, and `hash`, which
    learns no router, ignores the recipe's losses on the routes.

    Raises:
        RecipeError: the reference is impossible, or an option belongs to another family.
    """

    name: FamilyName
    """Name of the family."""
    num_experts: Annotated[int, Ge(1)]
    """Number of full-size experts of the reference (N)."""
    top_k: Annotated[int, Ge(1)]
    """Experts per token in the reference (K)."""
    hidden: Annotated[int, Ge(1)]
    """Hidden width of one full-size expert, the standard feed-forward width."""
    segments: Annotated[int, Ge(1)] = 1
    """Number of experts that each full-size one is cut into (m; deepseekmoe, dynamic)."""
    shared: Annotated[int, Ge(0)] = 0
    """Number of cut experts that are always on (K_s; deepseekmoe, dynamic)."""
    p: Annotated[float, Gt(0), Le(1)] = 0.4
    """Probability mass that the chosen experts must pass (dynamic)."""
    max_parts: Annotated[int, Ge(1)] | None = None
    """Maximum number of routed experts per token (dynamic); left out: no cap."""
    widen: Annotated[float, Gt(0)] = 1.0
    """Factor of each expert's width (gshard; the paper's x1.2 and x1.5)."""
    multiple: Annotated[int, Ge(1)] = 1
    """Number of full-size experts that are all always on (dense; the paper's x2, x4 and x16)."""
    align: Annotated[int, Ge(1)] = 1
    """Round each expert's width to the nearest multiple of this."""

    def __post_init__(self) -> None:
        if self.name not in FAMILIES:
            raise RecipeError(f"unknown family {self.name!r}", nearest(self.name, FAMILIES))
        for key in ("num_experts", "top_k", "hidden", "segments", "widen", "multiple", "align"):
            if getattr(self, key) <= 0 or not math.isfinite(getattr(self, key)):
                raise RecipeError(f"model.family.{key} must be above 0, not {getattr(self, key)}")
        if self.top_k > self.num_experts:
            raise RecipeError(
                f"model.family.top_k ({self.top_k}) is larger than its num_experts ({self.num_experts})"
            )
        if not 0 <= self.shared < self.segments * self.top_k:
            raise RecipeError(
                f"model.family.shared ({self.shared}) leaves no routed expert: a token takes "
                f"segments * top_k = {self.segments * self.top_k} in all"
            )
        for key, owner in (("widen", "gshard"), ("multiple", "dense")):
            # Ignoring them would let unequal models be compared as equal ones.
            if getattr(self, key) != 1 and self.name != owner:
                raise RecipeError(
                    f"model.family.{key} belongs to the family {owner!r}, not to {self.name!r}",
                    f"leave it out, or set model.family.name to {owner!r}",
                )
        self.build()

    def sizes(self) -> FamilySizes:
        """Return counts and widths, and the intended sizes before rounding."""
        return FAMILIES[self.name][0](self)

    def build(self) -> FeedForward:
        """Return router, parts and always-on part, as a recipe could have stated them.

        Raises:
            RecipeError: the router refuses its number of parts.
        """
        sizes = self.sizes()
        router = FAMILIES[self.name][1](self, sizes)
        parts = None
        if router is not None:
            router.check(sizes.num_parts)
            parts = SwiGLUExpertsConfig(num_parts=sizes.num_parts, hidden=sizes.part_hidden)
        return FeedForward(router=router, parts=parts, always=SwiGLUConfig(hidden=sizes.always_hidden))

    def width(self, share: float) -> int:
        """Return a share of the full width, rounded to a multiple of `align`."""
        # Not round(): it would round 0.5 down and 1.5 up.
        return self.align * max(1, math.floor(share * self.hidden / self.align + 0.5))


def _dense(family: FamilyConfig) -> FamilySizes:
    return FamilySizes(
        num_parts=0,
        parts_per_token=0.0,
        part_hidden=0,
        always_hidden=family.multiple * family.width(1.0),
        intended_total=float(family.multiple * family.hidden),
        intended_activated=float(family.multiple * family.hidden),
    )


def _full_size(family: FamilyConfig, taken: int) -> FamilySizes:
    return FamilySizes(
        num_parts=family.num_experts,
        parts_per_token=float(taken),
        part_hidden=family.width(family.widen),
        always_hidden=0,
        intended_total=family.num_experts * family.widen * family.hidden,
        intended_activated=taken * family.widen * family.hidden,
    )


def _one_of_n(family: FamilyConfig) -> FamilySizes:
    return _full_size(family, 1)


def _k_of_n(family: FamilyConfig) -> FamilySizes:
    return _full_size(family, family.top_k)


def _segmented(family: FamilyConfig) -> FamilySizes:
    """Return the sizes with N' = mN - K_s and K' = mK - K_s (DeepSeekMoE Eqs. 9-11)."""
    m, shared, width = family.segments, family.shared, family.width(1 / family.segments)
    return FamilySizes(
        num_parts=m * family.num_experts - shared,
        parts_per_token=float(m * family.top_k - shared),
        part_hidden=width,
        always_hidden=shared * width,
        intended_total=float(family.num_experts * family.hidden),
        intended_activated=float(family.top_k * family.hidden),
    )


def _no_router(_family: FamilyConfig, _sizes: FamilySizes) -> None:
    """Return no router: nothing is routed."""


def _hash(_family: FamilyConfig, _sizes: FamilySizes) -> RouterConfig:
    config: RouterConfig = HashConfig()
    return config


def _top_k(_family: FamilyConfig, sizes: FamilySizes) -> RouterConfig:
    return TopKConfig(k=int(sizes.parts_per_token))


def _top_p(family: FamilyConfig, sizes: FamilySizes) -> RouterConfig:
    return TopPConfig(p=family.p, max_parts=family.max_parts, assumed_parts=sizes.parts_per_token)


_Sizes: TypeAlias = Callable[[FamilyConfig], FamilySizes]
_Router: TypeAlias = Callable[[FamilyConfig, FamilySizes], RouterConfig | None]

FAMILIES: dict[str, tuple[_Sizes, _Router]] = {
    "dense": (_dense, _no_router),
    "hash": (_one_of_n, _hash),
    "switch": (_one_of_n, _top_k),
    "gshard": (_k_of_n, _top_k),
    "deepseekmoe": (_segmented, _top_k),
    "dynamic": (_segmented, _top_p),
}
"""Name → function that derives the sizes from the reference, and function that makes the router."""
