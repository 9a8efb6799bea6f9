"""The weights of a base that can be adapted, and their names."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.mixture.parts.swiglu import SwiGLUExperts
from expertise.skills.skill import Factors

Kind = Literal["linear", "conv1d", "embedding", "experts"]
"""Kind of weight; `conv1d` is GPT-2's linear layer, whose weight is transposed."""

ALL_LINEAR = "all-linear"
"""Pattern for every linear layer except the output head."""
EXPERTS = "experts"
"""Pattern for every stack of expert weights."""
ALL = "all"
"""Pattern for all linear layers and all stacks of experts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A weight of a base that skills can adapt."""

    address: str
    """Dotted name: of the module, or of the parameter for stacked experts."""
    kind: Kind
    """Kind of the adapted weight."""
    in_features: int
    """Width of the input; the vocabulary's size for an embedding."""
    out_features: int
    """Width of the output."""
    num_experts: int | None = None
    """Number of experts E of a stack `[E, out, in]`."""
    is_head: bool = False
    """True for the output head, which "all-linear" and "all" leave out."""

    def check(self, factors: Factors, skill: str) -> None:
        """Refuse factors whose shapes do not fit.

        Raises:
            SkillError: names the address and both shapes.
        """
        theirs = (factors.num_experts, factors.in_features, factors.out_features)
        ours = (self.num_experts, self.in_features, self.out_features)
        if theirs != ours or factors.embedding != (self.kind == "embedding"):
            raise SkillError(
                f"skill {skill!r} does not fit the base at {self.address}: "
                f"{_shape(*theirs, factors.embedding)} against {_shape(*ours, self.kind == 'embedding')}"
            )

    def num_params(self, rank: int) -> int:
        """Number of parameters of a skill of this rank on this weight."""
        return (self.num_experts or 1) * rank * (self.in_features + self.out_features)


def all_targets(base: nn.Module) -> dict[str, Target]:
    """Every weight of a base that can be adapted: address → target, in the order of the modules."""
    head = _head(base)
    refused = _refused(base)
    found: dict[str, Target] = {}
    for name, module in base.named_modules():
        if not name or name in refused:
            continue
        for target in _of_module(name, module):
            found[target.address] = dataclasses.replace(target, is_head=module is head)
    return found


def find_targets(base: nn.Module, patterns: str | Iterable[str]) -> dict[str, Target]:
    """The targets that any of the patterns matches.

    Args:
        base: any module.
        patterns: `"all-linear"`, `"experts"`, `"all"` (both); or an address, its end (`"q_proj"`,
            `"self_attn.q_proj"`), or either with `*` in it.

    Raises:
        SkillError: a pattern names nothing; near names are listed.
    """
    known = all_targets(base)
    wanted: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {address for address, target in known.items() if _matches(target, pattern)}
        if not hits:
            raise SkillError(
                f"no weight of the base that can be adapted is called {pattern!r}",
                why_not(base, pattern, known),
            )
        wanted |= hits
    if not wanted:
        raise SkillError("a skill needs at least one weight to adapt")
    return {address: target for address, target in known.items() if address in wanted}


def stacks_of(experts: nn.Module) -> tuple[str, str]:
    """Names of the two stacks of gated experts, in the order in which they are applied."""
    return ("gate_up", "down") if isinstance(experts, SwiGLUExperts) else ("gate_up_proj", "down_proj")


def experts_problem(module: nn.Module) -> str | None:
    """Reason why stacked experts in the layout of transformers cannot be adapted; None if they can."""
    if not hasattr(module, "is_transposed"):
        return "they do not say how they compute"
    for flag, problem in (
        ("is_transposed", "their weights are transposed"),
        ("has_bias", "they have biases"),
        ("has_post_expert_norm", "they are normed before they are added"),
        ("_is_expert_parallel", "they are spread over ranks"),
    ):
        if getattr(module, flag, False):
            return problem
    return None if getattr(module, "has_gate", True) else "they have no gate"


def is_foreign_experts(module: nn.Module) -> bool:
    """True if a module holds stacked experts in the layout of transformers 5."""
    own = module._parameters
    return all(
        isinstance(own.get(name), Tensor) and own[name].ndim == 3  # type: ignore[union-attr]
        for name in ("gate_up_proj", "down_proj")
    )


def is_conv1d(module: nn.Module) -> bool:
    """True if a module is GPT-2's Conv1D: `x @ weight + bias` with `weight [in, out]`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "weight")


def _of_module(name: str, module: nn.Module) -> Iterator[Target]:
    if isinstance(module, nn.Linear):
        yield Target(
            address=name,
            kind="linear",
            in_features=module.in_features,
            out_features=module.out_features,
        )
    elif isinstance(module, nn.Embedding) and _looks_up(module):
        yield Target(
            address=name,
            kind="embedding",
            in_features=module.num_embeddings,
            out_features=module.embedding_dim,
        )
    elif is_conv1d(module):
        rows, columns = _matrix(module).shape
        yield Target(address=name, kind="conv1d", in_features=rows, out_features=columns)
    elif isinstance(module, SwiGLUExperts) or (is_foreign_experts(module) and not experts_problem(module)):
        for own, stack in module.named_parameters(recurse=False):
            if stack.ndim == 3:
                num_experts, rows, columns = stack.shape
                yield Target(
                    address=f"{name}.{own}",
                    kind="experts",
                    in_features=columns,
                    out_features=rows,
                    num_experts=num_experts,
                )


def _matrix(module: Any) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _head(base: nn.Module) -> nn.Module | None:
    get = getattr(base, "get_output_embeddings", None)
    if callable(get):
        found = get()
        return found if isinstance(found, nn.Module) else None
    return None


def _refused(base: nn.Module) -> dict[str, str]:
    """Modules that look adaptable but are not → the reason."""
    found: dict[str, str] = {}
    for name, module in base.named_modules():
        prefix = f"{name}." if name else ""
        for child in getattr(module, "weights_read_directly", ()):
            found[prefix + child] = (
                "is read as a plain matrix, never called: what is added there has no effect"
            )
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            kind = type(module).__name__
            for inner, _ in module.named_modules(prefix=name):
                found[inner] = (
                    f"belongs to a {kind}, which reads weights and passes by the layers that hold them"
                )
        elif isinstance(module, nn.Embedding) and not _looks_up(module):
            found[name] = f"is a {type(module).__name__}, which does more than to look its input up"
        elif is_foreign_experts(module) and (problem := experts_problem(module)):
            found[name] = f"holds experts that cannot be adapted: {problem}"
    return found


def read_elsewhere(base: nn.Module) -> set[str]:
    """Layers whose weight another layer uses as well."""
    return {
        f"{name}.{child}" if name else child
        for name, module in base.named_modules()
        for child in getattr(module, "weights_read_elsewhere", ())
    }


def _looks_up(embedding: nn.Embedding) -> bool:
    """True if an embedding only looks up rows, or also scales them as embeddings of transformers do."""
    return type(embedding).forward is nn.Embedding.forward or hasattr(embedding, "embed_scale")


def _matches(target: Target, pattern: str) -> bool:
    if pattern in (ALL, ALL_LINEAR, EXPERTS):
        linear = target.kind in ("linear", "conv1d") and not target.is_head
        return (linear and pattern != EXPERTS) or (target.kind == "experts" and pattern != ALL_LINEAR)
    return any(fnmatch.fnmatchcase(target.address, form) for form in (pattern, f"*.{pattern}"))


def why_not(base: nn.Module, name: str, known: Mapping[str, Target]) -> str:
    """A hint for a name that matches no target: the reason if there is one, else similar names."""
    refused = _refused(base)
    for module in (name, name.rpartition(".")[0]):
        if module in refused:
            return f"{module} {refused[module]}"
    if not known and next(_of_module("", base), None) is not None:
        return f"the base is itself a {type(base).__name__}: put it into a module, as nn.Sequential(layer)"
    ends = {address.rpartition(".")[2] for address in known} | set(known)
    near = difflib.get_close_matches(name, sorted(ends), n=5, cutoff=0.5)
    if near:
        return f"near names: {', '.join(near)}"
    shown = sorted({address.rpartition(".")[2] for address in known})
    return f"known are: {', '.join(shown[:12]) or 'none'}{' …' if len(shown) > 12 else ''}"


def _shape(num_experts: int | None, in_features: int, out_features: int, embedding: bool) -> str:
    stack = f"{num_experts} experts of " if num_experts else ""
    return f"{stack}{'embedding ' if embedding else ''}{in_features} → {out_features}"


def storage_dtype(base: nn.Module, target: Target) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a target's weight."""
    if target.kind == "experts":
        weight: Tensor = base.get_parameter(target.address)
    else:
        weight = _matrix(base.get_submodule(target.address))
    return weight.dtype, weight.device
