"""New skills: configuration, initial factors, and trained factors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

import torch
from annotated_types import Gt
from torch import Tensor, nn

from expertise.errors import SkillError, nearest
from expertise.skills.derived import skills_of
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import ALL, find_targets

Scale = Literal["alpha/r", "alpha/sqrt(r)", "raw"]
"""Reading of alpha: divided by the rank (LoRA), by its root (rank-stabilised), or the multiplier itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkillConfig:
    """Targets, rank and scaling of a new skill."""

    targets: list[str] = dataclasses.field(default_factory=lambda: [ALL])
    """Weights to adapt: "all", "all-linear", "experts", or names and ends of names, `*` allowed."""
    rank: Annotated[int, Gt(0)] = 8
    """Rank r of each adapted weight (PSEC's default); for experts, of each expert."""
    alpha: float = 16.0
    """Strength of the skill; `scale_convention` turns it into the multiplier."""
    scale_convention: Scale = "alpha/r"
    """Divisor of alpha: the rank, its root, or none ("raw", as PSEC's released code)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SkillError(f"a skill's rank must be above 0, not {self.rank}")
        if self.scale_convention not in get_args(Scale):
            raise SkillError(
                f"scale_convention is one of {', '.join(get_args(Scale))}, not {self.scale_convention!r}"
            )
        if not (self.alpha and math.isfinite(self.alpha)):
            raise SkillError(f"alpha must be finite and not 0, not {self.alpha}")

    @property
    def scaling(self) -> float:
        """Multiplier on `B A x`."""
        divisors = {"alpha/r": float(self.rank), "alpha/sqrt(r)": math.sqrt(self.rank), "raw": 1.0}
        return self.alpha / divisors[self.scale_convention]


def fresh(base: nn.Module, name: str, config: SkillConfig, seed: int = 0) -> Skill:
    """A new skill without effect: A normal with std 1 / sqrt(in), B zero (PSEC's LeCun start; LoRA §4.1).

    Args:
        base: the model to adapt.
        name: name of the skill.
        config: targets, rank and scaling.
        seed: seed of A, which is drawn on the CPU in float32, so that it is the same on every device.

    Raises:
        SkillError: a target matches nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for address, target in find_targets(base, config.targets).items():
        stack: Iterable[int] = [target.num_experts] if target.num_experts else []
        down = torch.randn(*stack, config.rank, target.in_features, generator=generator)
        # An embedding picks one column of A instead of summing over all: the vocabulary's size is no fan-in.
        fan_in = config.rank if target.kind == "embedding" else target.in_features
        up = torch.zeros(*stack, target.out_features, config.rank)
        factors[address] = Factors(
            A=down * fan_in**-0.5, B=up, scaling=config.scaling, embedding=target.kind == "embedding"
        )
    return Skill(name=name, factors=factors)


def learnt(model: nn.Module, name: str) -> Skill:
    """Copy a skill with its current factors out of a composed model to the CPU.

    Raises:
        SkillError: the model has no skill of this name.
    """
    held = {skill.name: skill for skill in skills_of(model)}
    if name not in held:
        raise SkillError(f"this model has no skill {name!r}", nearest(name, held))
    factors = {address: _copied(f) for address, f in held[name].factors.items()}
    return dataclasses.replace(held[name], factors=factors)


def trainable(model: nn.Module) -> list[Tensor]:
    """Trainable parameters of a composed model: the growing skill's factors and the router's."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _copied(factors: Factors) -> Factors:
    down, up = (t.detach().cpu().clone(memory_format=torch.contiguous_format) for t in (factors.A, factors.B))
    return dataclasses.replace(factors, A=down, B=up)
