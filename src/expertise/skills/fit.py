"""Whether a skill's factors fit the layers of a base, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expertise.errors import SkillError, nearest
from expertise.skills.skill import Factors, Skill


def submodule(base: nn.Module, path: str) -> nn.Module | None:
    """A module by its dotted name, or None."""
    try:
        return base.get_submodule(path)
    except AttributeError:
        return None


def is_transposed_linear(module: nn.Module | None) -> bool:
    """Whether a layer is the Conv1D of GPT-2: a linear layer that stores its weight as `[in, out]`."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def require_fit(factors: Mapping[str, Factors], base: nn.Module, what: str) -> None:
    """Compare every factor with the layer it is for.

    Args:
        factors: address → factors.
        base: the model, nothing attached.
        what: what to call the skill in messages.

    Raises:
        SkillError: a layer is missing, is of another kind, or has another shape.
    """
    for address, made in factors.items():
        found = _shape(base, address)
        if found is None:
            raise SkillError(
                f"{what} adapts {address}: no linear layer, embedding or stack of experts of the base",
                _near(base, address),
            )
        experts, out_features, in_features, embedding = found
        if (made.num_experts, made.out_features, made.in_features) != (experts, out_features, in_features):
            wanted, given = (
                " x ".join(str(size) for size in sizes if size is not None)
                for sizes in (
                    (experts, out_features, in_features),
                    (made.num_experts, made.out_features, made.in_features),
                )
            )
            raise SkillError(f"{what} does not fit the base: {address} is {wanted}, the skill is for {given}")
        if made.embedding != embedding:
            kind = "an embedding" if embedding else "a linear layer"
            raise SkillError(f"{what} does not fit the base: {address} is {kind} there")


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
        if own is None or own.shape != copy.shape or not torch.equal(own.cpu(), copy.to(own.dtype)):
            raise SkillError(f"{what} brings a weight of its own for {name}, which is not the base's")


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


def _shape(base: nn.Module, address: str) -> tuple[int | None, int, int, bool] | None:
    """Experts, out, in, and whether inputs are looked up; None where nothing of this name can be adapted."""
    module = submodule(base, address)
    if isinstance(module, nn.Embedding):
        return None, module.embedding_dim, module.num_embeddings, True
    if isinstance(module, nn.Linear):
        return None, module.out_features, module.in_features, False
    if module is not None and is_transposed_linear(module):
        in_features, out_features = module.get_parameter("weight").shape
        return None, out_features, in_features, False
    try:
        weight = base.get_parameter(address)
    except AttributeError:
        return None
    if weight.ndim == 2:
        return None, weight.shape[0], weight.shape[1], False
    if weight.ndim != 3:
        return None
    # A few models of transformers (GPT-OSS) keep their experts the other way round, and say so.
    owner = base.get_submodule(address.rpartition(".")[0])
    rows, columns = weight.shape[1:]
    out_features, in_features = (columns, rows) if getattr(owner, "is_transposed", False) else (rows, columns)
    return weight.shape[0], out_features, in_features, False


def _near(base: nn.Module, address: str) -> str:
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    names += [name for name, parameter in base.named_parameters() if parameter.ndim == 3]
    close = nearest(address, names)
    return close if close.startswith("did") else "was it made for another model?"
