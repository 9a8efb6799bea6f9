"""Merging of skills: their weighted sum, exact or cut to a given rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from expertise.errors import SkillError
from expertise.skills.fit import require_alike
from expertise.skills.skill import Factors, Skill
from expertise.skills.subspaces import thin_svd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged:
    """Result of `merge_skills`."""

    skill: Skill
    """The merged skill, without a card."""
    error: float
    """Norm of the lost part relative to the norm of the exact sum; 0.0 if nothing was recompressed."""
    errors: Mapping[str, float]
    """Address → relative error at that weight."""


def merge_skills(
    skills: Sequence[Skill],
    *,
    name: str,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    base: nn.Module | None = None,
) -> Merged:
    """`sum of weight_i * delta_i` as one skill.

    Without a rank the sum is exact: A stacked on A, B beside B, so ranks add up. With one, that product is
    cut at the rank by its singular values (Eckart and Young 1936), the best that the rank allows; it is never
    formed.

    Args:
        skills: at least one, all of one base; weights that only some adapt stay as those say.
        name: of the new skill.
        weights: one for each skill; None: 1 each. Skills with weight 0 are left out.
        rank: the most that a weight (of a stack: each expert) may have.
        base: the model, nothing attached; needed only when the skills adapt different stacks of one module,
            whose order the files of a skill must keep.

    Returns:
        Factors in at least float32, and the error.

    Raises:
        SkillError: numbers do not fit, nothing is left, shapes differ, or the order of stacks is not known.
    """
    weights = [1.0] * len(skills) if weights is None else list(weights)
    if len(weights) != len(skills):
        raise SkillError(f"{len(skills)} skills need as many weights, not {len(weights)}")
    if rank is not None and rank < 1:
        raise SkillError(f"a rank must be above 0, not {rank}")
    require_alike(skills)
    used = [(skill, float(weight)) for skill, weight in zip(skills, weights, strict=True) if weight != 0]
    factors, lost, all_of_it = {}, {}, {}
    for address in _addresses([skill for skill, _ in used], base):
        terms = [(skill.factors[address], weight) for skill, weight in used if address in skill.factors]
        factors[address] = _sum(terms)
        lost[address] = all_of_it[address] = 0.0
        if rank is not None:
            factors[address], lost[address], all_of_it[address] = _cut(factors[address], rank)
    if not factors:
        raise SkillError("nothing to merge: no skill, or every weight is 0")
    whole = sum(all_of_it.values())
    return Merged(
        skill=Skill(name=name, factors=factors),
        error=(sum(lost.values()) / whole) ** 0.5 if whole else 0.0,
        errors={a: (lost[a] / all_of_it[a]) ** 0.5 if all_of_it[a] else 0.0 for a in factors},
    )


def _sum(terms: Sequence[tuple[Factors, float]]) -> Factors:
    """The exact sum of the changes; a multiplier that all terms share is kept apart to avoid rounding."""
    dtype = torch.float32
    for made, _ in terms:
        dtype = torch.promote_types(dtype, made.A.dtype)
    scalings = [made.scaling * weight for made, weight in terms]
    shared = scalings[0] if len(set(scalings)) == 1 else None
    ups = [
        made.B.to(dtype) * (1.0 if shared is not None else scaling)
        for (made, _), scaling in zip(terms, scalings, strict=True)
    ]
    return Factors(
        A=torch.cat([made.A.to(dtype) for made, _ in terms], dim=-2),
        B=torch.cat(ups, dim=-1),
        scaling=1.0 if shared is None else shared,
        embedding=terms[0][0].embedding,
    )


def _cut(made: Factors, rank: int) -> tuple[Factors, float, float]:
    """The best factors of a given rank; the lost energy, and the total energy."""
    svd = thin_svd(made)
    root = svd.S[..., None, :rank].sqrt()
    cut = Factors(
        A=(svd.V[..., :rank] * root).mT.to(made.A.dtype).contiguous(),
        B=(svd.U[..., :rank] * root).to(made.B.dtype).contiguous(),
        scaling=1.0,
        embedding=made.embedding,
    )
    squares = svd.S.square()
    return cut, float(squares[..., rank:].sum()), float(squares.sum())


def _addresses(skills: Sequence[Skill], base: nn.Module | None) -> list[str]:
    """All addresses; stacks of a module in the base's order, or in that of a skill that has all of them."""
    found = list(dict.fromkeys(address for skill in skills for address in skill.factors))
    stacks: dict[str, list[str]] = {}
    for skill in skills:
        for address, made in skill.factors.items():
            here = stacks.setdefault(address.rpartition(".")[0], [])
            if made.num_experts is not None and address not in here:
                here.append(address)
    orders = [list(skill.factors) for skill in skills]
    if base is not None:
        orders.insert(0, [name for name, _ in base.named_parameters()])
    for module, several in stacks.items():
        if len(several) < 2:
            continue
        whole = next((order for order in orders if set(several) <= set(order)), None)
        if whole is None:
            raise SkillError(
                f"the skills adapt different stacks of {module}, whose order is not known",
                "give the base",
            )
        places = sorted(found.index(address) for address in several)
        for place, address in zip(places, sorted(several, key=whole.index), strict=True):
            found[place] = address
    return found
