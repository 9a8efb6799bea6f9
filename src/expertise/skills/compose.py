"""`compose`: a base and skills made into one model, whose weights of skills any router may decide."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from expertise.errors import SkillError
from expertise.mixture.routers.base import Router, RouterConfig
from expertise.mixture.routers.context import Context
from expertise.skills.adapted import Adapted
from expertise.skills.calls import listen
from expertise.skills.clone import clone, replace
from expertise.skills.composition import Composition, Reads
from expertise.skills.experts import StackedSkills, adapt_experts
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import Target, all_targets, storage_dtype


@runtime_checkable
class HasSkills(Protocol):
    """What `compose` asks of a library."""

    def load(self, name: str, base: nn.Module | None = None, force: bool = False) -> Skill:
        """A skill by its name, refused when it belongs to another base."""


def compose(
    base: nn.Module,
    library: HasSkills | Sequence[Skill],
    names: Sequence[str] | None = None,
    *,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    router: Router | RouterConfig | None = None,
    reads: Reads | None = None,
    source: str | None = None,
    growing: Skill | None = None,
    force: bool = False,
) -> nn.Module:
    """The base with skills beside its weights: `W(c) = W_0 + sum over i of alpha_i(c) s_i B_i A_i`.

    PSEC (arXiv 2502.05932, §4.2), for any module. The result is a second tree of modules of the base's own
    classes over the base's own storage; the base is not touched, and dropout is off. A call may name the
    weights itself: `model(..., weights=…)` (`[K]`, `[rows, K]` or `[rows, tokens, K]`) or
    `model(..., skills=["a", None, {"b": 0.5}])`, one entry per row. `model.composition` holds the rest.

    Args:
        base: any module; its parameters are shared, never changed.
        library: where the skills are, or skills in memory.
        names: which skills, in the order of alpha; None: all that were given in memory.
        weights: constant alpha; a missing name counts as 0.
        router: makes alpha instead; a config is built for the width of what it reads.
        reads: what the router sees (`composition.Reads`); default "context" for `Context`, else "layer".
        source: for "token" and "pooled": the module whose output is read; default the input embedding.
            Layers that run before it have alpha = 0.
        growing: a skill beside these that learns, with weight 1, or with the last of the router's weights.
        force: take skills of another base, as long as their shapes fit.

    Returns:
        The composed model, in evaluation mode. Only the router's and the growing skill's parameters have
        `requires_grad`.

    Raises:
        SkillError: a skill does not fit, there is none, or weights and router do not go together.
    """
    if weights is not None and router is not None:
        raise SkillError("give weights or a router, not both")
    if "composition" in base.__dict__:
        raise SkillError("the base is a composed model", "compose its own base with all skills at once")
    skills = _resolve(base, library, names, force)
    num_kept = len(skills)
    if growing is not None:
        skills.append(growing)
    if not skills:
        raise SkillError("a composed model needs at least one skill")
    known = all_targets(base)
    placed = _fit(skills, known, base)
    if router is not None and reads is None:
        reads = "context" if _is_context(router) else "layer"
    composition = Composition(base, [skill.name for skill in skills], None, reads or "context")
    root = clone(base)
    if reads == "layer" and router is not None:
        if growing is not None:
            raise SkillError(
                "a skill grows beside fixed weights or one router, not beside a router per layer"
            )
        make = functools.partial(_layer_router, router, len(skills))
    else:
        make = None
        if router is not None:
            width = _source_width(root, source) if reads in ("token", "pooled") else 0
            composition.router = _built(router, width, len(skills))
    _adapt(root, known, placed, composition, num_kept, make)
    if composition.router is not None and reads in ("token", "pooled"):
        _source(root, source).register_forward_hook(composition.read)
    listen(root, composition)
    object.__setattr__(root, "composition", composition)
    # One place in the tree, which never is a child that the base's own forward would run.
    next(iter(composition.adapted.values())).add_module("composition", composition)
    composition.to(composition._device())
    if weights is not None or growing is not None:
        given = composition.as_weights(weights or {}) if growing is None else _beside(composition, weights)
        if composition.router is None:
            composition.set_weights(given.tolist())
    root.train = functools.partial(_train, root)  # type: ignore[method-assign]
    return root.eval()


def merged(model: nn.Module, weights: Sequence[float] | Mapping[str, float] | None = None) -> nn.Module:
    """A plain model of the base's class with constant weights worked in: `W_0 + sum of alpha_i dW_i`.

    Args:
        model: a composed model.
        weights: alpha; None: the model's constant weights.

    Returns:
        A model that shares with the base what no skill adapts. A tied weight that is adapted is tied no more.

    Raises:
        SkillError: the model is not composed, or its weights are not constant.
    """
    composition = composition_of(model)
    if weights is None:
        if composition.router is not None or composition.routers():
            raise SkillError("a router decides this model's weights: give those to merge with")
        alpha = composition.default_weights()
    else:
        alpha = composition.as_weights(weights)
    plain = clone(composition.base)
    known = all_targets(plain)
    deltas: dict[str, torch.Tensor] = {}
    for address, slot in composition.slots():
        change = float(alpha[slot.skill]) * slot.factors.delta()
        deltas[address] = deltas[address] + change if address in deltas else change
    for address, delta in deltas.items():
        kind = known[address].kind
        owner_name, name = (address, "weight") if kind != "experts" else address.rsplit(".", 1)
        owner = plain.get_submodule(owner_name)
        weight = getattr(owner, name)
        if kind in ("conv1d", "embedding"):
            delta = delta.t()
        owner._parameters[name] = nn.Parameter(
            (weight + delta.to(weight.dtype)).detach(), weight.requires_grad
        )
    return plain


def extended(model: nn.Module, skill: Skill, weight: float = 1.0) -> nn.Module:
    """A composed model with one skill more; nothing of the base is copied.

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
    """The skills of a composed model; their tensors are views of what it computes with.

    Raises:
        SkillError: the model is not composed.
    """
    composition = composition_of(model)
    factors: list[dict[str, Factors]] = [{} for _ in composition.names]
    for address, slot in composition.slots():
        factors[slot.skill][address] = slot.factors
    return [Skill(name=n, factors=f) for n, f in zip(composition.names, factors, strict=True)]


def composition_of(model: nn.Module) -> Composition:
    """The composition of a composed model.

    Raises:
        SkillError: it is not composed.
    """
    found = model.__dict__.get("composition")
    if not isinstance(found, Composition):
        raise SkillError("this model is not composed of skills")
    return found


def _resolve(
    base: nn.Module, library: HasSkills | Sequence[Skill], names: Sequence[str] | None, force: bool
) -> list[Skill]:
    if isinstance(library, Sequence):
        held = {skill.name: skill for skill in library}
        if len(held) != len(library):
            raise SkillError("two skills have the same name")
        if names is None:
            return list(held.values())
        missing = [name for name in names if name not in held]
        if missing:
            raise SkillError(f"no skill {missing[0]!r} was given", f"given are: {', '.join(held)}")
        return [held[name] for name in names]
    if names is None or isinstance(names, str):
        raise SkillError("name the skills to compose, as a list")
    if len(set(names)) != len(names):
        raise SkillError(f"a skill is named twice: {', '.join(names)}")
    return [library.load(name, base=base, force=force) for name in names]


def _fit(
    skills: Sequence[Skill], known: Mapping[str, Target], base: nn.Module
) -> dict[str, dict[int, Factors]]:
    """Address → skill number → factors, in the base's dtype and place."""
    placed: dict[str, dict[int, Factors]] = {}
    for number, skill in enumerate(skills):
        for address, factors in skill.factors.items():
            if address not in known:
                raise SkillError(
                    f"skill {skill.name!r} adapts {address}, which the base does not have",
                    "it was learnt on another base, or names its layers differently",
                )
            known[address].check(factors, skill.name)
            dtype, device = storage_dtype(base, known[address])
            placed.setdefault(address, {})[number] = factors.to(device=device, dtype=dtype)
    return {address: placed[address] for address in known if address in placed}


def _adapt(
    root: nn.Module,
    known: Mapping[str, Target],
    placed: Mapping[str, dict[int, Factors]],
    composition: Composition,
    num_kept: int,
    make: Any,
) -> None:
    """Replace every layer that a skill adapts."""
    stacks: dict[str, dict[str, dict[int, Factors]]] = {}
    for address, factors in placed.items():
        target = known[address]
        if target.kind == "experts":
            owner, _, name = address.rpartition(".")
            stacks.setdefault(owner, {})[name] = factors
            continue
        layer: nn.Module = root.get_submodule(address)
        for trainable in (False, True):
            group = {n: f for n, f in factors.items() if (n >= num_kept) == trainable}
            if group:
                width = target.out_features if target.kind == "embedding" else target.in_features
                router = make(width, len(group)) if make else None
                layer = Adapted(layer, target, group, composition, router, trainable)
        replace(root, address, layer)
        assert isinstance(layer, Adapted)
        composition.adapted[address] = layer
    for owner, named in stacks.items():
        module = root.get_submodule(owner)
        names = [n for n, p in module.named_parameters(recurse=False) if p.ndim == 3]
        groups = tuple(
            [
                StackedSkills({n: f for n, f in group.items() if (n >= num_kept) == trainable}, trainable)
                for group in [named.get(name, {})]
                for trainable in (False, True)
                if any((n >= num_kept) == trainable for n in group)
            ]
            for name in names
        )
        assert len(groups) == 2
        width = module.get_parameter(names[0]).shape[2]
        router = make(width, len(composition.names)) if make else None
        stand_in, parts = adapt_experts(module, groups, composition, router)
        replace(root, owner, stand_in)
        composition.adapted[owner] = parts


def _is_context(router: Router | RouterConfig) -> bool:
    return isinstance(router, Context | Context.Config)


def _built(router: Router | RouterConfig, width: int, num_parts: int) -> Router:
    if isinstance(router, Router):
        if router.num_parts != num_parts:
            raise SkillError(f"the router decides over {router.num_parts} skills, there are {num_parts}")
        return router
    router.check(num_parts)
    if width and isinstance(router, Context.Config):
        router = dataclasses.replace(router, context_dim=width)
    return router.build(width, num_parts)


def _layer_router(router: Router | RouterConfig, num_skills: int, width: int, num_parts: int) -> Router:
    """A layer's own; one that was given as a module is copied, and must fit every layer's width."""
    if isinstance(router, Router):
        return _built(copy.deepcopy(router), width, num_parts)
    return _built(router, width, num_parts)


def _source(root: nn.Module, name: str | None) -> nn.Module:
    if name is not None:
        try:
            found = root.get_submodule(name)
        except AttributeError:
            raise SkillError(f"the base has no module {name!r} for the router to read") from None
        return found.mixture.always if isinstance(found, Adapted) else found  # type: ignore[return-value]
    for module in root.modules():
        if isinstance(module, nn.Embedding):
            return module
    raise SkillError("the base has no embedding for the router to read: name a module with source=")


def _source_width(root: nn.Module, name: str | None) -> int:
    source = _source(root, name)
    for module in reversed(list(source.modules())):
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
    for module in root.modules():
        if isinstance(module, nn.Embedding):
            return module.embedding_dim
    raise SkillError("the width of what the router reads is not known: give a router, not a config")


def _beside(composition: Composition, weights: Sequence[float] | Mapping[str, float] | None) -> torch.Tensor:
    """Weights of the old skills, and 1 for the one that grows."""
    growing = composition.names[-1]
    if isinstance(weights, Mapping) or weights is None:
        return composition.as_weights({growing: 1.0, **(weights or {})})
    return composition.as_weights(weights if len(weights) == len(composition.names) else [*weights, 1.0])


def _train(root: nn.Module, mode: bool = True) -> nn.Module:
    """Only what learns goes into training mode: dropout of the base stays off."""
    for module in root.modules():
        own = list(module.parameters(recurse=False))
        module.training = mode and bool(own) and all(p.requires_grad for p in own)
    return root
