"""Models and skills derived from a composed model: merged, extended, or taken out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.clone import clone
from expertise.skills.composing import compose
from expertise.skills.composition import composition_of
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import all_targets, read_elsewhere


def merged(model: nn.Module, weights: Sequence[float] | Mapping[str, float] | None = None) -> nn.Module:
    """Merge constant weights into a plain model of the base's class: `W_0 + sum of alpha_i dW_i`.

    Args:
        model: a composed model.
        weights: alpha; None: the model's constant weights.

    Returns:
        A model that shares with the base what no skill adapts. A tied weight that is adapted is tied no more.

    Raises:
        SkillError: the model is not composed, its weights are not constant, or a weight cannot be changed
            for one layer alone.
    """
    composition = composition_of(model)
    if weights is None:
        if composition.router is not None or composition.routers():
            raise SkillError("a router decides this model's weights: give those to merge with")
        alpha = composition.default_weights()
    else:
        alpha = composition.as_weights(weights)
    plain = clone(composition.base)
    known, shared = all_targets(plain), read_elsewhere(plain)
    changes: dict[str, Tensor] = {}
    for address, slot in composition.slots():
        if share := float(alpha[slot.skill]):
            # Summed in float32 at least and rounded once, even if the base has a coarser dtype.
            exact = torch.promote_types(slot.factors.A.dtype, torch.float32)
            change = share * slot.factors.to(dtype=exact).delta()
            changes[address] = changes[address] + change if address in changes else change
    for address, change in changes.items():
        if address in shared:
            raise SkillError(f"{address} cannot be merged: its weight is another layer's, too")
        kind = known[address].kind
        owner_name, name = (address, "weight") if kind != "experts" else address.rsplit(".", 1)
        owner = plain.get_submodule(owner_name)
        weight = owner._parameters.get(name)
        if weight is None:
            raise SkillError(f"{address} cannot be merged: its weight is computed, not stored")
        if kind in ("conv1d", "embedding"):
            change = change.t()
        owner._parameters[name] = nn.Parameter((weight + change).detach().to(weight.dtype), False)
    _untie(plain)
    return plain


def extended(model: nn.Module, skill: Skill, weight: float = 1.0) -> nn.Module:
    """Add one skill to a composed model; nothing of the base is copied.

    Args:
        model: composed, with constant weights or none.
        skill: what to add.
        weight: its alpha.

    Raises:
        SkillError: a router decides the weights (it must be learnt anew), or the skill does not fit.
    """
    composition = composition_of(model)
    if composition.routers():
        raise SkillError("a router knows its skills: compose anew with all of them, and learn it again")
    alpha = [*composition.default_weights().tolist(), weight]
    return compose(composition.base, [*skills_of(model), skill], weights=alpha)


def skills_of(model: nn.Module) -> list[Skill]:
    """The skills of a composed model; their tensors are views of the model's own.

    Raises:
        SkillError: the model is not composed.
    """
    composition = composition_of(model)
    factors: list[dict[str, Factors]] = [{} for _ in composition.names]
    for address, slot in composition.slots():
        factors[slot.skill][address] = slot.factors
    return [Skill(name=n, factors=f) for n, f in zip(composition.names, factors, strict=True)]


def _untie(plain: Any) -> None:
    """Keep transformers from tying a head and an embedding again after a skill has made them different."""
    config = getattr(plain, "config", None)
    if getattr(config, "tie_word_embeddings", False) and hasattr(plain, "get_output_embeddings"):
        head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            plain.config = copy.deepcopy(config)
            plain.config.tie_word_embeddings = False
