"""`compose`: a base and skills made into one model, whose weights of skills any router may decide."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from expertise.errors import SkillError, nearest
from expertise.mixture.routers.base import Router
from expertise.mixture.routers.configs import RouterConfig
from expertise.skills import routing
from expertise.skills.adapted import Adapted
from expertise.skills.calls import listen
from expertise.skills.clone import clone, guard, replace
from expertise.skills.composed_json import Reads
from expertise.skills.composition import Composition
from expertise.skills.experts import StackedSkills, adapt_experts
from expertise.skills.fit import not_there
from expertise.skills.joined import join
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import Target, all_targets, stacks_of, storage_dtype

MakeRouter = Callable[[int, int], Router]
"""A layer's own router, for the width of its input and the number of its skills."""


@runtime_checkable
class HasSkills(Protocol):
    """What `compose` asks of a library."""

    def load_all(
        self, names: Iterable[str], base: nn.Module | None = None, *, force: bool = False
    ) -> list[Skill]:
        """Skills by their names, refused when they belong to another base."""


def compose(
    base: nn.Module,
    library: HasSkills | Mapping[str, Skill] | Sequence[Skill],
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
    `model(..., skills=["a", None, {"b": 0.5}])`, one entry per row. What tells rows apart must find them as
    the first dimension of every adapted layer's input. `model.composition` holds the rest.

    Args:
        base: any module; its parameters are shared, never changed.
        library: where the skills are, or skills in memory.
        names: which skills, in the order of alpha; None: all that were given in memory.
        weights: constant alpha; a missing name counts as 0.
        router: makes alpha instead; a config is built for the width of what it reads.
        reads: what the router sees (`routing.Reads`); default "context" for `Context`, else "layer".
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
    reads = routing.reads_of(router, reads, source)
    if any(isinstance(module, Composition) for module in base.modules()):
        raise SkillError("the base is a composed model", "compose its own base with all skills at once")
    skills = _resolve(base, library, names, force)
    num_kept = len(skills)
    if growing is not None:
        skills.append(growing)
    _require_distinct(skills)
    known = all_targets(base)
    placed = _fit(skills, known, base)
    composition = Composition(base, [skill.name for skill in skills], None, reads)
    composition.router_config = None if isinstance(router, Router) else router
    composition.source = source
    root = clone(base)
    make: MakeRouter | None = None
    if router is not None and reads == "layer":
        make = functools.partial(routing.of_layer, router)
        if growing is not None:
            raise SkillError("a skill grows beside fixed weights or one router, not a router per layer")
    elif router is not None:
        read = routing.source_of(root, source) if reads in ("token", "pooled") else None
        guess = not isinstance(router, Router)
        width = None if read is None else routing.width_of(root, read, guess)
        composition.router = routing.built(router, width, len(skills))
        if read is not None:
            read.register_forward_hook(composition.read)
    _adapt(root, known, placed, composition, num_kept, make)
    listen(root, composition)
    guard(root, base)
    object.__setattr__(root, "composition", composition)
    # One place in the tree, which never is a child that the base's own forward would run.
    next(iter(composition.adapted.values())).add_module("composition", composition)
    for own in composition.routers().values():
        own.to(composition.device)
    if growing is not None and router is None:
        weights = _beside(composition, weights).tolist()
    if weights is not None:
        composition.set_weights(weights)
    root.train = functools.partial(_train, root, composition)  # type: ignore[method-assign]
    return root.eval()


def _resolve(
    base: nn.Module,
    library: HasSkills | Mapping[str, Skill] | Sequence[Skill],
    names: Sequence[str] | None,
    force: bool,
) -> list[Skill]:
    if isinstance(names, str):
        raise SkillError("name the skills to compose as a list")
    if isinstance(library, HasSkills):
        if names is None:
            raise SkillError("name the skills of the library to compose")
        return library.load_all(names, base, force=force)
    if not isinstance(library, Mapping | Sequence):
        raise SkillError(f"skills come from a library, a list or a dict, not from a {type(library).__name__}")
    if isinstance(library, Mapping):
        held = {name: dataclasses.replace(skill, name=name) for name, skill in library.items()}
    else:
        _require_distinct(library)
        held = {skill.name: skill for skill in library}
    for name in names or ():
        if name not in held:
            raise SkillError(f"no skill {name!r} was given", nearest(name, held))
    return [held[name] for name in (held if names is None else names)]


def _require_distinct(skills: Sequence[Skill]) -> None:
    names = [skill.name for skill in skills]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SkillError(f"a composed model cannot have two skills of the name {twice!r}")


def _fit(
    skills: Sequence[Skill], known: Mapping[str, Target], base: nn.Module
) -> dict[str, dict[int, Factors]]:
    """Address → skill number → factors, in the base's dtype and place."""
    placed: dict[str, dict[int, Factors]] = {}
    for number, skill in enumerate(skills):
        for address, factors in skill.factors.items():
            if address not in known:
                raise not_there(skill.name, address, base)
            known[address].check(factors, skill.name)
            dtype, device = storage_dtype(base, known[address])
            placed.setdefault(address, {})[number] = factors.to(device=device, dtype=dtype)
    if not placed:
        raise SkillError("a composed model needs at least one skill")
    return {address: placed[address] for address in known if address in placed}


def _adapt(
    root: nn.Module,
    known: Mapping[str, Target],
    placed: Mapping[str, dict[int, Factors]],
    composition: Composition,
    num_kept: int,
    make: MakeRouter | None,
) -> None:
    """Replace every layer that a skill adapts."""

    def groups(factors: Mapping[int, Factors]) -> list[tuple[dict[int, Factors], bool]]:
        """The skills that stay as they are, then the one that learns, if they are here."""
        cut = [{n: f for n, f in factors.items() if (n >= num_kept) == grows} for grows in (False, True)]
        return [(group, grows) for group, grows in zip(cut, (False, True), strict=True) if group]

    stand_ins: dict[nn.Module, nn.Module] = {}
    stacks: dict[str, dict[str, dict[int, Factors]]] = {}
    for address, factors in placed.items():
        target = known[address]
        if target.kind == "experts":
            owner, _, name = address.rpartition(".")
            stacks.setdefault(owner, {})[name] = factors
            continue
        old = root.get_submodule(address)
        layer: nn.Module = old
        for group, grows in groups(factors):
            width = target.out_features if target.kind == "embedding" else target.in_features
            router = make(width, len(group)) if make else None
            layer = Adapted(layer, target, group, composition, router, grows)
            composition.adapted[address] = layer
        stand_ins[old] = layer
    for owner, named in stacks.items():
        module = root.get_submodule(owner)
        first, second = stacks_of(module)
        skills = tuple(
            [
                StackedSkills(tuple(group), join(list(group.values()), grows))
                for group, grows in groups(named.get(n, {}))
            ]
            for n in (first, second)
        )
        width = module.get_parameter(first).shape[2]
        router = make(width, len(composition.names)) if make else None
        stand_ins[module], composition.adapted[owner] = adapt_experts(
            module, (skills[0], skills[1]), composition, router
        )
    replace(root, stand_ins)


def _beside(composition: Composition, weights: Sequence[float] | Mapping[str, float] | None) -> Tensor:
    """Weights of the old skills, and 1 for the one that grows, unless they say something else."""
    growing = composition.names[-1]
    if weights is None or isinstance(weights, Mapping):
        return composition.as_weights({growing: 1.0, **(weights or {})})
    return composition.as_weights(weights if len(weights) == len(composition.names) else [*weights, 1.0])


def _train(root: nn.Module, composition: Composition, mode: bool = True) -> nn.Module:
    """Only routers go into training mode: dropout of the base stays off."""
    for module in root.modules():
        module.training = False
    composition.training = mode
    for router in composition.routers().values():
        router.train(mode)
    return root
