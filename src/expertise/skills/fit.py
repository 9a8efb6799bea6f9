"""Whether a skill's factors fit the layers of a base, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import all_targets, find_targets


def submodule(base: nn.Module, path: str) -> nn.Module | None:
    """A module by its dotted name, or None."""
    try:
        return base.get_submodule(path)
    except AttributeError:
        return None


def not_there(what: str, address: str, base: nn.Module) -> SkillError:
    """The error that names an address where a base has nothing that can be adapted."""
    hints: tuple[str, ...] = ()
    try:
        find_targets(base, address)
    except SkillError as error:  # its hints give the reason, or near names
        hints = error.hints
    return SkillError(
        f"skill {what!r} adapts {address}, where the base has nothing that can be adapted", *hints
    )


def require_fit(factors: Mapping[str, Factors], base: nn.Module, what: str) -> None:
    """Compare every factor with the layer it is for.

    Args:
        factors: address → factors.
        base: the model, nothing attached.
        what: what to call the skill in messages.

    Raises:
        SkillError: a layer is missing, cannot be adapted, or has another shape.
    """
    known = all_targets(base)
    for address, made in factors.items():
        if address not in known:
            raise not_there(what, address, base)
        known[address].check(made, what)


def require_finite(factors: Mapping[str, Factors], what: str) -> None:
    """Refuse factors that hold a NaN or an infinity.

    Raises:
        SkillError: the weight is named.
    """
    for address, made in factors.items():
        if not bool(made.A.isfinite().all() & made.B.isfinite().all()):
            raise SkillError(f"{what} is not finite at {address}")


def require_copies(copies: Mapping[str, Tensor], base: nn.Module, what: str) -> None:
    """Compare weights of a base that stand in an adapter's file with the base's own.

    Raises:
        SkillError: they differ, so the adapter was made for, or brings, other ones.
    """
    for name, copy in copies.items():
        try:
            own = base.get_parameter(name).detach()
        except AttributeError:
            own = None
        if own is None or own.shape != copy.shape or not _same(own.cpu(), copy):
            raise SkillError(f"{what} brings a weight of its own for {name}, which is not the base's")


def _same(own: Tensor, copy: Tensor) -> bool:
    """Tell whether they are equal, if need be in the other's dtype: PEFT copies what a model ran with."""
    rounded = copy.is_floating_point() and torch.equal(own.to(copy.dtype), copy)
    return rounded or torch.equal(own, copy.to(own.dtype))


def require_alike(skills: Sequence[Skill]) -> None:
    """Whether skills can be skills of one base, as far as they adapt the same weights.

    Raises:
        SkillError: they adapt a weight in different shapes; it is named.
    """
    known: dict[str, tuple[Skill, tuple[int | None, int, int, bool]]] = {}
    for skill in skills:
        for address, made in skill.factors.items():
            shape = (made.num_experts, made.out_features, made.in_features, made.embedding)
            other, first = known.setdefault(address, (skill, shape))
            if shape != first:
                raise SkillError(
                    f"skills {other.name} and {skill.name} have no base in common: they adapt {address} "
                    "in different shapes"
                )
