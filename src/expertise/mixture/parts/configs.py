"""What recipes say of parts and of what is always on. No torch here, as in `routers/configs.py`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from annotated_types import Ge

from expertise.errors import RecipeError

if TYPE_CHECKING:
    from expertise.mixture.parts.base import Parts
    from expertise.mixture.parts.low_rank import LowRankExperts
    from expertise.mixture.parts.swiglu import SwiGLU, SwiGLUExperts


@runtime_checkable
class PartsConfig(Protocol):
    """What the `Config` of every kind of part answers."""

    @property
    def name(self) -> str:
        """The kind's name in the registry."""

    @property
    def num_parts(self) -> int:
        """E."""

    def build(self, dim: int) -> Parts:
        """The parts for tokens of width `dim`, in and out."""

    def num_params_each(self, dim: int) -> int:
        """Learned numbers of one part, without building anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUConfig:
    """What a recipe says of an always-on feed-forward network."""

    hidden: Annotated[int, Ge(0)]
    """Hidden width (all shared experts together); 0: nothing is always on."""

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise RecipeError(f"a hidden width cannot be negative: {self.hidden}")

    def build(self, dim: int) -> SwiGLU | None:
        """The network for tokens of width `dim`, or None."""
        from expertise.mixture.parts.swiglu import SwiGLU

        return SwiGLU(dim, self.hidden) if self.hidden else None

    def num_params(self, dim: int) -> int:
        """Learned numbers."""
        return 3 * dim * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUExpertsConfig:
    """What a recipe says of routed feed-forward experts."""

    name: Literal["swiglu"] = "swiglu"
    """Which kind of part."""
    num_parts: Annotated[int, Ge(1)]
    """Routed experts; shared ones belong to `always`."""
    hidden: Annotated[int, Ge(1)]
    """Hidden width of each."""

    def __post_init__(self) -> None:
        if self.num_parts < 1 or self.hidden < 1:
            raise RecipeError(
                f"experts need num_parts and hidden above 0, not {self.num_parts} and {self.hidden}"
            )

    def build(self, dim: int) -> SwiGLUExperts:
        """The experts for tokens of width `dim`."""
        from expertise.mixture.parts.swiglu import SwiGLUExperts

        return SwiGLUExperts(self.num_parts, dim, self.hidden)

    def num_params_each(self, dim: int) -> int:
        """Learned numbers of one expert."""
        return 3 * dim * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankExpertsConfig:
    """What a recipe says of low-rank parts."""

    name: Literal["low_rank"] = "low_rank"
    """Which kind of part."""
    num_parts: Annotated[int, Ge(1)]
    """Number of parts."""
    rank: Annotated[int, Ge(1)]
    """Rank r of each."""

    def __post_init__(self) -> None:
        if self.num_parts < 1 or self.rank < 1:
            raise RecipeError(
                f"low-rank parts need num_parts and rank above 0, not {self.num_parts} and {self.rank}"
            )

    def build(self, dim: int) -> LowRankExperts:
        """The parts for tokens of width `dim`."""
        from expertise.mixture.parts.low_rank import LowRankExperts

        return LowRankExperts(self.num_parts, dim, dim, self.rank)

    def num_params_each(self, dim: int) -> int:
        """Learned numbers of one part."""
        return 2 * dim * self.rank
