"""A skill's factors as the two files of a PEFT adapter; the layout is described in `peft.py`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.fit import submodule
from expertise.skills.peft import INNER, PREFIX, Adapter
from expertise.skills.peft_config import CONFIG, LAYOUT_VERSION, WEIGHTS, config_bytes, readable_by_peft
from expertise.skills.skill import Factors
from expertise.skills.targets import is_conv1d

_KEPT = ("task_type", "base_model_name_or_path", "revision", "auto_mapping")
"""Fields of an adapter's configuration that stay when its files are written anew."""


def for_peft(
    files: Mapping[str, bytes], adapter: Adapter | None = None, base: nn.Module | None = None
) -> dict[str, bytes]:
    """An adapter's two files in the form that the present PEFT reads; unchanged where they have it.

    Args:
        files: their content, by name, as `read` accepted it.
        adapter: what `read` gave; None: only the configuration is looked at.
        base: the model it belongs to, nothing attached.
    """
    if adapter is None or not adapter.is_older:
        config = readable_by_peft(files[CONFIG])
        named = json.loads(config)
        if adapter is not None and not (named.get("target_modules") or named.get("target_parameters")):
            # Without names PEFT would adapt what it takes to be usual for the model, and drop the rest.
            config = config_bytes({**named, "target_modules": list(adapter.factors)})
        return {**files, CONFIG: config}
    text, weights = write(adapter.factors, base, adapter.copies)
    before = json.loads(files[CONFIG])
    values = json.loads(text) | {key: before[key] for key in _KEPT if key in before}
    return {**files, CONFIG: config_bytes(values), WEIGHTS: weights}


def write(
    factors: Mapping[str, Factors], base: nn.Module | None = None, copies: Mapping[str, Tensor] | None = None
) -> tuple[str, bytes]:
    """The content of the two files, for PEFT to load: `adapter_config.json`, `adapter_model.safetensors`.

    Scalings are written as `alpha / r`. Without a base, several stacks of one module are taken to stand in
    the order in which the module registers them.

    Args:
        factors: address → factors.
        base: the model they belong to, nothing attached.
        copies: weights of the base that go into the file too, by their name in the base.

    Raises:
        SkillError: PEFT's layout has no place for an address.
    """
    from safetensors.torch import save

    modules, parameters, tensors = [], [], {}
    stacks: dict[str, list[str]] = {}
    for address, made in factors.items():
        if made.num_experts is None:
            modules.append(address)
            names = (
                ("lora_embedding_A", "lora_embedding_B")
                if made.embedding
                else ("lora_A.weight", "lora_B.weight")
            )
            for name, tensor in zip(names, (made.A, made.B), strict=True):
                tensors[f"{PREFIX}{address}.{name}"] = tensor
        else:
            path, _, parameter = address.rpartition(".")
            if not path:
                raise SkillError(f"PEFT has no place for a parameter of the model itself: {address}")
            stacks.setdefault(path, []).append(parameter)
    for path, names_here in stacks.items():
        order = names_here if base is None else _registered(base, path, names_here)
        parameters += [f"{path}.{name}" for name in order]
        for number, name in enumerate(order):
            made, inner = factors[f"{path}.{name}"], INNER * (len(order) - 1 - number)
            tensors |= {
                f"{PREFIX}{path}{inner}.lora_A.weight": made.A.flatten(0, 1),
                f"{PREFIX}{path}{inner}.lora_B.weight": made.B.permute(1, 2, 0).flatten(1),
            }
    for name, tensor in (copies or {}).items():
        owner = name.rpartition(".")[0]
        tensors[f"{PREFIX}{owner}{INNER if owner in factors else ''}.weight"] = tensor
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    layers = [] if base is None else [submodule(base, name) for name in modules]
    conv1d = any(layer is not None and is_conv1d(layer) for layer in layers)
    config = _config(factors, modules, parameters, fan_in_fan_out=conv1d)
    return config_bytes(config).decode(), save(plain, metadata={"format": "pt"})


def _registered(base: nn.Module, path: str, names: list[str]) -> list[str]:
    """Names of a module's parameters in its own order."""
    module = submodule(base, path)
    known = [] if module is None else [name for name, _ in module.named_parameters(recurse=False)]
    if missing := [name for name in names if name not in known]:
        raise SkillError(f"the base has no parameter {path}.{missing[0]}")
    return [name for name in known if name in names]


def _config(
    factors: Mapping[str, Factors], modules: list[str], parameters: list[str], *, fan_in_fan_out: bool
) -> dict[str, Any]:
    """The fields that PEFT needs; ranks and alphas that are not the usual ones stand in the patterns."""
    ranks = {address: made.rank for address, made in factors.items()}
    alphas = {address: _alpha(made) for address, made in factors.items()}
    rank, alpha = (Counter(table.values()).most_common(1)[0][0] for table in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "peft_version": LAYOUT_VERSION,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "modules_to_save": None,
        "rank_pattern": dict(_patterns(ranks, rank)),
        "alpha_pattern": dict(_patterns(alphas, alpha)),
    }


def _patterns(table: Mapping[str, Any], usual: int | float) -> Iterator[tuple[str, int | float]]:
    """Entries for what differs; anchored, as PEFT would let a name match at the end of a longer one."""
    for address, value in table.items():
        if value != usual:
            yield f"^{re.escape(address)}", value


def _alpha(made: Factors) -> int | float:
    """The alpha that gives a scaling back, short where a short one does."""
    alpha = made.scaling * made.rank
    short = float(f"{alpha:.12g}")
    if short / made.rank == made.scaling:
        alpha = short
    return int(alpha) if alpha == int(alpha) else alpha
