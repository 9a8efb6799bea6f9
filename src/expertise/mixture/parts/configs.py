"""Configurations of the parts and of `always`. No torch here, as in `routers/configs.py`."""

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
    """Interface of the `Config` of every kind of part."""

    @property
    def name(self) -> str:
        """The kind's name in the registry."""

    @property
    def num_parts(self) -> int:
        """Number of parts E."""

    def build(self, dim: int) -> Parts:
        """Build the parts for tokens of width `dim`, in and out."""

    def num_params_each(self, dim: int) -> int:
        """Number of parameters of one part, without building anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUConfig:
    """Configuration of an always-on feed-forward network."""

    hidden: Annotated[int, Ge(0)]
    """Hidden width (all shared experts together); 0: nothing is always on."""

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise RecipeError(f"a hidden width cannot be negative: {self.hidden}")

    def build(self, dim: int) -> SwiGLU | None:
        """Build the network for tokens of width `dim`; None if the hidden width is 0."""
        from expertise.mixture.parts.swiglu import SwiGLU

        return SwiGLU(dim, self.hidden) if self.hidden else None

    def num_params(self, dim: int) -> int:
        """Number of parameters of the network."""
        return 3 * dim * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUExpertsConfig:
    """Configuration of routed feed-forward experts."""

    name: Literal["swiglu"] = "swiglu"
    """Kind of part."""
    num_parts: Annotated[int, Ge(1)]
    """Number of routed experts; shared experts belong to `always`."""
    hidden: Annotated[int, Ge(1)]
    """Hidden width of each expert."""

    def __post_init__(self) -> None:
        if self.num_parts < 1 or self.hidden < 1:
            raise RecipeError(
                f"experts need num_parts and hidden above 0, not {self.num_parts} and {self.hidden}"
            )

    def build(self, dim: int) -> SwiGLUExperts:
        """Build the experts for tokens of width `dim`."""
        from expertise.mixture.parts.swiglu import SwiGLUExperts

        return SwiGLUExperts(self.num_parts, dim, self.hidden)

    def num_params_each(self, dim: int) -> int:
        """Number of parameters of one expert."""
        return 3 * dim * self.hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankExpertsConfig:
    """Configuration of low-rank parts."""

    name: Literal["low_rank"] = "low_rank"
    """Kind of part."""
    num_parts: Annotated[int, Ge(1)]
    """Number of low-rank parts."""
    rank: Annotated[int, Ge(1)]
    """Rank r of each part."""

    def __post_init__(self) -> None:
        if self.num_parts < 1 or self.rank < 1:
            raise RecipeError(
                f"low-rank parts need num_parts and rank above 0, not {self.num_parts} and {self.rank}"
            )

    def build(self, dim: int) -> LowRankExperts:
        """Build the parts for tokens of width `dim`."""
        from expertise.mixture.parts.low_rank import LowRankExperts

        return LowRankExperts(self.num_parts, dim, dim, self.rank)

    def num_params_each(self, dim: int) -> int:
        """Number of parameters of one part."""
        return 2 * dim * self.rank
