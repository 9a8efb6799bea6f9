"""Reader of PEFT's adapter layout; it does not need PEFT. `peft_export.py` writes the layout.

A folder holds `adapter_config.json` (see `peft_config.py`) and `adapter_model.safetensors`, whose keys are
`base_model.model.<name>.<what>`:

    linear, Conv1D    `<layer>.lora_A.weight [r, in]`, `<layer>.lora_B.weight [out, r]`
    embedding         `<layer>.lora_embedding_A [r, vocabulary]`, `<layer>.lora_embedding_B [dim, r]`
    stacked experts   `<module>{.base_layer}*.lora_A.weight [E * r, in]`, `….lora_B.weight [out, r * E]`

Rows of a stack's A are sorted by expert, columns of its B by rank. Several stacks of one module wrap each
other in the order in which the module registers them: the first is innermost, under most `.base_layer`.
Older layouts of experts are read too: stacks with input and output exchanged (PEFT before 0.19.1), and linear
layers of single experts (`experts.3.w1`, transformers 4), which `expert_layers.py` joins to stacks.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.expert_layers import ExpertLayers
from expertise.skills.fit import not_there, require_finite, submodule
from expertise.skills.peft_config import CONFIG, LAYOUT_VERSION, WEIGHTS, PeftConfig, read_config
from expertise.skills.skill import Factors
from expertise.skills.targets import is_conv1d

PREFIX = "base_model.model."
"""Start of every name in an adapter's weights."""
INNER = ".base_layer"
"""Suffix of a module's name for the module inside its wrapper; once per level of nesting."""
_SUFFIXES = {
    ".lora_A.weight": ("A", False),
    ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True),
    ".lora_embedding_B": ("B", True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """Content of an adapter's files."""

    factors: Mapping[str, Factors]
    """Address of a weight → its factors."""
    convention: str
    """Convention of the scalings, one of `skill.CONVENTIONS`."""
    copies: Mapping[str, Tensor]
    """Base weights that PEFT saved beside adapted embeddings and heads, by their name in the base."""
    is_older: bool
    """True if the files have an older layout of experts than `peft_export` writes."""


@dataclasses.dataclass
class _Pair:
    """The two factors of one wrapper while they are collected."""

    embedding: bool
    A: Tensor | None = None
    B: Tensor | None = None


def read(config: bytes, weights: bytes, where: str, base: nn.Module | None = None) -> Adapter:
    """Read an adapter from the content of its two files.

    Args:
        config: `adapter_config.json`.
        weights: `adapter_model.safetensors`.
        where: what to call the adapter in messages.
        base: the model it belongs to, nothing attached; without it the names in the configuration must tell
            layers from bare parameters, and stacks of one module are taken in the order that it lists.

    Raises:
        SkillError: it cannot be composed, is damaged, or its files do not belong together; one line says why.
    """
    settings = read_config(config, where)
    pairs, copies = _gather(_tensors(weights, where), where)
    depths = Counter(path for path, _ in pairs)
    factors: dict[str, Factors] = {}
    single = ExpertLayers(base, where)
    # From the innermost wrapper outwards, which is the order of the stacks in their module.
    for (path, depth), pair in sorted(pairs.items(), key=lambda item: (_natural(item[0][0]), -item[0][1])):
        down, up = (_present(tensor, which, path, where) for tensor, which in ((pair.A, "A"), (pair.B, "B")))
        if base is not None and submodule(base, path) is None:
            if pair.embedding or not single.has_place_for(path):
                raise not_there(where, path, base)
            single.add(path, _plain(path, down, up, settings, where, embedding=False))
            continue
        names = _parameters(path, settings, base)
        if not names and depth:
            raise SkillError(f"{where}: no name in target_parameters fits {path}")
        if names and len(names) != depths[path]:
            raise SkillError(
                f"{where}: {WEIGHTS} adapts {depths[path]} parameters of {path}, "
                f"target_parameters names {len(names)}"
            )
        if names:
            name = names[depths[path] - 1 - depth]
            address, made = _stacked(path, name, down, up, settings, where, base)
        else:
            address, made = path, _plain(path, down, up, settings, where, embedding=pair.embedding)
        factors[address] = made
    # A single expert's product is the same in both layouts.
    stacks = {address: made for address, made in factors.items() if (made.num_experts or 1) > 1}
    swapped = bool(stacks) and _are_swapped(stacks, settings, where, base)
    if swapped:
        factors |= {address: _exchanged(made) for address, made in stacks.items()}
    joined = single.joined()
    factors |= joined
    if not factors:
        raise SkillError(f"{where}: {WEIGHTS} holds no factors")
    require_finite(factors, where)
    return Adapter(
        factors=factors,
        convention=settings.convention,
        copies=copies,
        is_older=swapped or bool(joined),
    )


def _tensors(weights: bytes, where: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise SkillError(f"{where}: {WEIGHTS} cannot be read: {error}") from None
    return tensors


def _gather(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[tuple[str, int], _Pair], dict[str, Tensor]]:
    """Sort an adapter's tensors into pairs by (path, depth of nested wrappers), and copies of the base."""
    pairs: dict[tuple[str, int], _Pair] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        suffix = next((s for s in _SUFFIXES if key.startswith(PREFIX) and key.endswith(s)), None)
        if suffix is None:
            others[key] = tensor
            continue
        path, depth = key.removeprefix(PREFIX).removesuffix(suffix), 0
        while path.endswith(INNER):
            path, depth = path.removesuffix(INNER), depth + 1
        which, embedding = _SUFFIXES[suffix]
        if tensor.ndim != 2 or 0 in tensor.shape or not tensor.dtype.is_floating_point or INNER in path:
            raise SkillError(
                f"{where}: {key} of shape {list(tensor.shape)} is no factor of a linear layer, an embedding "
                "or a stack of experts"
            )
        pair = pairs.setdefault((path, depth), _Pair(embedding))
        if pair.embedding != embedding:
            raise SkillError(f"{where}: {path} is adapted as a layer and as an embedding at once")
        setattr(pair, which, tensor)
    copies = {}
    for key, tensor in others.items():
        name = key.removeprefix(PREFIX).replace(f"{INNER}.", ".")
        # PEFT adds the weights of embedding and head where one of them is adapted, or on request.
        is_copy = key.startswith(PREFIX) and name.endswith(".weight") and tensor.ndim == 2
        if not is_copy or "lora_" in name:
            raise SkillError(f"{where}: {key} in {WEIGHTS} belongs to no plain LoRA")
        copies[name] = tensor
    return pairs, copies


def _present(tensor: Tensor | None, which: str, path: str, where: str) -> Tensor:
    if tensor is None:
        raise SkillError(f"{where}: {WEIGHTS} has no factor {which} for {path}")
    return tensor


def _parameters(path: str, settings: PeftConfig, base: nn.Module | None) -> list[str]:
    """Names of the adapted bare parameters of a module, in order; empty if the module itself is adapted."""
    if base is not None:
        module = submodule(base, path)
        names = [] if module is None else [name for name, _ in module.named_parameters(recurse=False)]
        return [name for name in names if settings.targets_parameter(f"{path}.{name}")]
    found = []
    for target in settings.target_parameters:
        module_name, _, name = target.rpartition(".")
        if module_name:
            fits = path == module_name or path.endswith(f".{module_name}")
        else:
            fits = not settings.targets_module(path)
        if fits and name not in found:
            found.append(name)
    return found


def _plain(
    path: str, down: Tensor, up: Tensor, settings: PeftConfig, where: str, *, embedding: bool
) -> Factors:
    """Factors of a single layer."""
    rank = settings.rank_of(path)
    if down.shape[0] != rank or up.shape[1] != rank:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise SkillError(f"{where}: factors of {path} have shapes {shapes}, their rank should be {rank}")
    return Factors(A=down, B=up, scaling=settings.scaling_of(path), embedding=embedding)


def _stacked(
    path: str,
    name: str,
    down: Tensor,
    up: Tensor,
    settings: PeftConfig,
    where: str,
    base: nn.Module | None,
) -> tuple[str, Factors]:
    """Address and factors of a bare parameter: a stack `[E, out, in]`, or the plain weight of a layer."""
    full = f"{path}.{name}"
    rank, rows, columns = settings.rank_of(full), down.shape[0], up.shape[1]
    if rows % rank or rows != columns:
        shapes = f"{list(down.shape)} and {list(up.shape)}"
        raise SkillError(f"{where}: factors of {full} have shapes {shapes}, no multiple of their rank {rank}")
    experts, scaling = rows // rank, settings.scaling_of(full)
    down = down.reshape(experts, rank, -1)
    up = up.reshape(-1, rank, experts).permute(2, 0, 1).contiguous()
    if experts > 1 or name != "weight":
        return full, Factors(A=down, B=up, scaling=scaling)
    module = None if base is None else submodule(base, path)
    if module is not None and (isinstance(module, nn.Embedding) or is_conv1d(module)):
        raise SkillError(f"{where}: {full} is stored the other way round; adapt {path} by target_modules")
    return path, Factors(A=down[0], B=up[0], scaling=scaling)


def _are_swapped(
    stacks: Mapping[str, Factors], settings: PeftConfig, where: str, base: nn.Module | None
) -> bool:
    """True if factors of stacks, read in the layout of today's PEFT, have input and output exchanged."""
    if settings.stacks != "unknown":
        return settings.stacks == "swapped"
    # One release of PEFT wrote all stacks, so one weight that is not square decides.
    for address, made in stacks.items():
        shape = () if base is None else tuple(base.get_parameter(address).shape[1:])
        upright = made.out_features, made.in_features
        if shape and shape[0] != shape[1] and shape in (upright, upright[::-1]):
            return shape != upright
    raise SkillError(
        f"{where}: the layout of the factors of {next(iter(stacks))} cannot be known, because {CONFIG} names "
        "no release of PEFT",
        f'write "peft_version" into it: "0.18.1" if PEFT before {LAYOUT_VERSION} saved the adapter, else '
        f'"{LAYOUT_VERSION}"',
        *(() if base is not None else ("or name the base: where a weight is not square, its shape tells",)),
    )


def _exchanged(made: Factors) -> Factors:
    """The factors of the transposed weights."""
    return dataclasses.replace(made, A=made.B.mT.contiguous(), B=made.A.mT.contiguous())


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]
