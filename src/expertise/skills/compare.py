"""Similarity of skills, and proposals what to do about it; nothing is changed.

The future work that PSEC (arXiv 2502.05932) names: a library grows with every task, and measures are wanted
that tell which skills it could do without. They are taken on the factors; no change of a weight is formed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import SkillError
from expertise.skills.fit import require_alike
from expertise.skills.skill import Factors, Skill
from expertise.skills.subspaces import ThinSVD, angles, inner, thin_svd

Inputs = Mapping[str, Tensor] | Callable[[Skill], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSimilarity:
    """Similarity of two skills at one weight that both adapt."""

    cosine: float | None
    """Cosine of the two changes; None if one of them is zero."""
    out_angles: tuple[float, ...]
    """Principal angles in degrees between their output spaces (columns of B)."""
    in_angles: tuple[float, ...]
    """Principal angles in degrees between their input spaces (rows of A)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Similarity of two skills."""

    first: str
    """Name of the first skill."""
    second: str
    """Name of the second skill."""
    cosine: float | None
    """Cosine of the changes over all weights; a weight that a skill does not adapt counts as zero change."""
    agreement: float | None
    """Cosine of their additions to the outputs on the given inputs; None without inputs or outputs."""
    distance: float | None
    """Norm of the difference of these additions, relative to the larger one's norm."""
    layers: Mapping[str, LayerSimilarity]
    """Address of a weight → similarity at that weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
    """Norm and singular values of a skill's change to the base."""

    name: str
    """Name of the skill."""
    norm: float
    """Frobenius norm of the changes over all weights."""
    spectrum: Mapping[str, tuple[float, ...]]
    """Address → singular values, descending; for a stack, the root of the sum of squares over experts."""

    def shares(self) -> list[float]:
        """Share of the squared norm in the first 1, 2, … singular values of every weight.

        As many as the largest rank; empty when the skill changes nothing.
        """
        rows = itertools.zip_longest(*self.spectrum.values(), fillvalue=0.0)
        squares = [sum(value**2 for value in row) for row in rows]
        total = sum(squares)
        return [share / total for share in itertools.accumulate(squares)] if total else []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """A suggested change to a library; nothing is done automatically."""

    kind: Literal["redundant", "smaller rank", "no effect", "unused"]
    """Kind of proposal."""
    skills: tuple[str, ...]
    """Names of the skills concerned."""
    reason: str
    """Reason in a sentence, with the figure and its threshold."""
    rank: int | None = None
    """The suggested rank, for a smaller rank."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Result of `compare_skills`."""

    pairs: tuple[Pair, ...]
    """One entry for every two skills."""
    energies: tuple[Energy, ...]
    """One entry for every skill."""
    proposals: tuple[Proposal, ...]
    """All suggested changes."""

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        return dataclasses.asdict(self)


def compare_skills(
    skills: Sequence[Skill],
    *,
    inputs: Inputs | None = None,
    redundant: float = 0.95,
    energy: float = 0.99,
    compositions: Mapping[str, Iterable[str]] | None = None,
) -> Comparison:
    """Compare each two of several skills of one base.

    Args:
        skills: at least one.
        inputs: on which to compare outputs: address → inputs `[…, in]` of that layer (ids for an embedding; a
            stack gives them to each of its experts), or a function of a skill that gives any output, such as
            the logits of the base with it less those without.
        redundant: two skills whose changes have at least this cosine, or its negative, are proposed as one.
        energy: a smaller rank is proposed that keeps this share of a skill's squared singular values.
        compositions: name of a composition → the skills that it uses; None: use is not looked at.

    Raises:
        SkillError: there is no skill, skills adapt one weight in different shapes, or inputs do not fit.
    """
    if not skills:
        raise SkillError("there is no skill to compare")
    require_alike(skills)
    weights = _gram_of_weights(skills)
    outputs = None if inputs is None else _gram_of_outputs(skills, inputs)
    parts = [{address: thin_svd(made) for address, made in skill.factors.items()} for skill in skills]
    pairs = tuple(
        Pair(
            first=skills[i].name,
            second=skills[j].name,
            cosine=_cosine(weights, i, j),
            agreement=None if outputs is None else _cosine(outputs, i, j),
            distance=None if outputs is None else _distance(outputs, i, j),
            layers={
                address: _layer(
                    skills[i].factors[address], skills[j].factors[address], svd, parts[j][address]
                )
                for address, svd in parts[i].items()
                if address in parts[j]
            },
        )
        for i, j in itertools.combinations(range(len(skills)), 2)
    )
    energies = tuple(
        Energy(
            name=skill.name,
            norm=float(weights[i, i].sqrt()),
            spectrum={address: _spectrum(svd) for address, svd in parts[i].items()},
        )
        for i, skill in enumerate(skills)
    )
    proposals = [
        *_redundant(pairs, redundant),
        *_smaller(skills, energies, energy),
        *([] if compositions is None else _unused(skills, compositions)),
    ]
    return Comparison(pairs=pairs, energies=energies, proposals=tuple(proposals))


def _gram_of_weights(skills: Sequence[Skill]) -> Tensor:
    """Inner products of the changes of each two skills, `[skills, skills]` in float64."""
    gram = torch.zeros(len(skills), len(skills), dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(range(len(skills)), 2):
        for address, made in skills[i].factors.items():
            if address in skills[j].factors:
                gram[i, j] += inner(made, skills[j].factors[address])
        gram[j, i] = gram[i, j]
    return gram


def _gram_of_outputs(skills: Sequence[Skill], inputs: Inputs) -> Tensor:
    """Inner products of the skills' additions to the outputs, `[skills, skills]` in float64."""
    gram = torch.zeros(len(skills), len(skills), dtype=torch.float64)
    if not isinstance(inputs, Mapping):
        given = [inputs(skill).detach().double() for skill in skills]
        if len({output.shape for output in given}) > 1:
            raise SkillError(f"outputs differ in shape: {sorted({tuple(output.shape) for output in given})}")
        rows = torch.stack([output.flatten() for output in given])
        return (rows @ rows.T).cpu()
    for address, x in inputs.items():
        there = [i for i, skill in enumerate(skills) if address in skill.factors]
        if there:
            rows = torch.stack([_added(skills[i].factors[address], x, address).flatten() for i in there])
            index = torch.tensor(there)
            gram[index[:, None], index] += (rows @ rows.T).cpu()
    return gram


def _added(made: Factors, x: Tensor, address: str) -> Tensor:
    """A skill's addition to the outputs of one weight, in float64."""
    if made.embedding:
        if x.dtype.is_floating_point or int(x.max()) >= made.in_features:
            raise SkillError(f"inputs of {address} must be ids below {made.in_features}")
        low = F.embedding(x, made.A.double().mT)
    elif x.shape[-1] != made.in_features:
        raise SkillError(f"inputs of {address} must be {made.in_features} wide, not {x.shape[-1]}")
    else:
        low = x.double().flatten(0, -2) @ made.A.double().mT
    return made.scaling * low @ made.B.double().mT


def _layer(first: Factors, second: Factors, one: ThinSVD, two: ThinSVD) -> LayerSimilarity:
    norms = one.S.square().sum().sqrt() * two.S.square().sum().sqrt()
    has, also_has = one.ranks(), two.ranks()
    return LayerSimilarity(
        cosine=float(inner(first, second) / norms) if norms > 0 else None,
        out_angles=tuple(angles(one.U, has, two.U, also_has).tolist()),
        in_angles=tuple(angles(one.V, has, two.V, also_has).tolist()),
    )


def _spectrum(svd: ThinSVD) -> tuple[float, ...]:
    squares = svd.S.square()
    return tuple((squares.sum(0) if squares.ndim == 2 else squares).sqrt().tolist())


def _cosine(gram: Tensor, i: int, j: int) -> float | None:
    norms = (gram[i, i] * gram[j, j]).sqrt()
    return float(gram[i, j] / norms) if norms > 0 else None


def _distance(gram: Tensor, i: int, j: int) -> float | None:
    larger = torch.maximum(gram[i, i], gram[j, j])
    between = (gram[i, i] + gram[j, j] - 2 * gram[i, j]).clamp(min=0)
    return float((between / larger).sqrt()) if larger > 0 else None


def _redundant(pairs: Iterable[Pair], threshold: float) -> Iterable[Proposal]:
    for pair in pairs:
        if pair.cosine is not None and abs(pair.cosine) >= threshold:
            same = "the same" if pair.cosine > 0 else "the opposite"
            yield Proposal(
                kind="redundant",
                skills=(pair.first, pair.second),
                reason=f"{pair.first} and {pair.second} change the base in {same} direction: cosine "
                f"{pair.cosine:.3f}, proposed from {threshold:g}",
            )


def _smaller(skills: Iterable[Skill], energies: Iterable[Energy], share: float) -> Iterable[Proposal]:
    for skill, found in zip(skills, energies, strict=True):
        rank = max(made.rank for made in skill.factors.values())
        kept = found.shares()
        if not kept:
            yield Proposal(kind="no effect", skills=(found.name,), reason=f"{found.name} changes nothing")
            continue
        enough = next((i + 1 for i, part in enumerate(kept) if part >= share - 1e-12), rank)
        if enough < rank:
            yield Proposal(
                kind="smaller rank",
                skills=(found.name,),
                reason=f"{found.name} keeps {kept[enough - 1]:.2%} of its energy at rank {enough} of {rank}, "
                f"proposed from {share:.2%}",
                rank=enough,
            )


def _unused(skills: Iterable[Skill], compositions: Mapping[str, Iterable[str]]) -> Iterable[Proposal]:
    used = {name for names in compositions.values() for name in names}
    for skill in skills:
        if skill.name not in used:
            yield Proposal(
                kind="unused",
                skills=(skill.name,),
                reason=f"none of {len(compositions)} compositions uses {skill.name}",
            )
