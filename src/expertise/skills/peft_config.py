"""`adapter_config.json` of PEFT: which fields matter for a composition, and which make one impossible.

Every field of PEFT 0.21 is decided here. A field that this version does not know is refused unless it is
empty, because it may change what the adapter computes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from expertise.errors import SkillError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
"""The two files of an adapter."""

_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "target_modules",
    "target_parameters",
    "bias",
    "init_lora_weights",
    "peft_version",
}
"""What `read_config` looks at."""

LAYOUT_VERSION = "0.19.1"
"""The first release of PEFT whose factors of a stack `[E, out, in]` map input to output; we write them so.

Releases before it took the first dimension of such a weight for its input and the second for its output.
"""

OUR_FIELDS = frozenset(
    {
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "inference_mode",
        "r",
        "lora_alpha",
        "lora_dropout",
        "bias",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "target_modules",
        "target_parameters",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
    }
)
"""The fields that we wrote before we also wrote `peft_version`; PEFT always writes more."""

_DEFAULTS: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "lora_dropout": 0.0, "bias": "none"}
"""Fields that PEFT cannot read as `null`, and what `null` stands for."""

_WITHOUT_EFFECT = {
    # Where an adapter comes from and how it was started, trained and run.
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    # Which layers are adapted: the names of the weights say it.
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    # PEFT takes these from the layer itself whatever the file says.
    "fan_in_fan_out",
    # Tied adapters are written out under both names.
    "ensure_weight_tying",
    # Of no use without the field that they belong to, which is refused.
    "megatron_core",
    "qalora_group_size",
}

_REFUSED = {
    "use_dora": "DoRA also rescales the base's own weights",
    "lora_bias": "it learns biases beside the factors",
    "modules_to_save": "it replaces whole layers of the base",
    "trainable_token_indices": "it replaces rows of the base's embedding",
    "layer_replication": "it repeats layers of the base",
    "megatron_config": "it is made for split layers of Megatron",
    "alora_invocation_tokens": "aLoRA is active after certain tokens only",
    "use_qalora": "QA-LoRA averages groups of its input",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA cuts the base's own weights and puts a diagonal between the factors",
    "velora_config": "VeLoRA keeps further weights beside the factors",
    "monteclora_config": "MonteCLoRA draws its factors from a distribution",
}

_BASE_UNCHANGED = ("gaussian", "orthogonal", "eva", "mica")
"""Ways to start an adapter, by name, that leave the base's weights alone."""

# An empty table turns a variant on, with its defaults; in a field nobody knows it can say nothing.
_OFF: tuple[Any, ...] = (None, False, [])
_EMPTY: tuple[Any, ...] = (*_OFF, {}, "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What of an adapter's settings says how its weights are meant."""

    rank: int
    """`r`."""
    alpha: float
    """`lora_alpha`."""
    rank_pattern: Mapping[str, int]
    """Regular expression at the end of a name → another rank."""
    alpha_pattern: Mapping[str, float]
    """Regular expression at the end of a name → another alpha."""
    convention: Literal["alpha/r", "alpha/sqrt(r)"]
    """How alpha and r give the scaling."""
    target_modules: str | tuple[str, ...]
    """Names or ends of names of adapted layers; a single string is a regular expression."""
    target_parameters: tuple[str, ...]
    """Names or ends of names of adapted bare parameters."""
    stacks: Literal["upright", "swapped", "unknown"]
    """Whether factors of stacked experts map input to output, or the reverse as before `LAYOUT_VERSION`."""

    def rank_of(self, name: str) -> int:
        """Rank of one adapted layer or parameter, by its full name."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, name), self.rank)

    def scaling_of(self, name: str) -> float:
        """Multiplier of one adapted layer or parameter, by its full name."""
        alpha, rank = (
            self.alpha_pattern.get(_pattern_key(self.alpha_pattern, name), self.alpha),
            self.rank_of(name),
        )
        return alpha / (rank if self.convention == "alpha/r" else math.sqrt(rank))

    def targets_module(self, name: str) -> bool:
        """Whether `target_modules` names a layer, as PEFT matches it."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.target_modules)

    def targets_parameter(self, name: str) -> bool:
        """Whether `target_parameters` names a parameter, as PEFT matches it."""
        return any(name == target or name.endswith(f".{target}") for target in self.target_parameters)


def read_config(data: bytes, where: str) -> PeftConfig:
    """The settings of an adapter.

    Args:
        data: content of `adapter_config.json`.
        where: what to call the adapter in messages.

    Raises:
        SkillError: no LoRA, or one with a field that cannot be composed; the field and the reason are named.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise SkillError(f"{where}: adapter_config.json is not JSON") from None
    if not isinstance(values, dict):
        raise SkillError(f"{where}: adapter_config.json is not an object")
    _refuse(values, where)
    try:
        config = PeftConfig(
            rank=_whole(values.get("r", 8)),
            alpha=_number(values.get("lora_alpha", 8)),
            rank_pattern={key: _whole(value) for key, value in _table(values, "rank_pattern").items()},
            alpha_pattern={key: _number(value) for key, value in _table(values, "alpha_pattern").items()},
            convention="alpha/sqrt(r)" if values.get("use_rslora") else "alpha/r",
            target_modules=_names(values.get("target_modules"), single=True),
            target_parameters=tuple(_names(values.get("target_parameters"), single=False)),
            stacks=_stacks(values),
        )
        for pattern in (*config.rank_pattern, *config.alpha_pattern):
            re.compile(pattern)
        config.targets_module("")
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise SkillError(f"{where}: adapter_config.json: {error}") from None
    return config


def readable_by_peft(data: bytes) -> bytes:
    """A configuration that `read_config` accepted, in a form that PEFT reads too.

    PEFT wants UTF-8 without a byte-order mark, and values where we also accept `null`. The bytes are
    unchanged when nothing stands in PEFT's way.
    """
    values = json.loads(data)
    missing = {key: default for key, default in _DEFAULTS.items() if key in values and values[key] is None}
    if not missing and data.lstrip()[:1] == b"{" and _is_utf8(data):
        return data
    return config_bytes(values | missing)


def config_bytes(values: Mapping[str, Any]) -> bytes:
    """The content of an `adapter_config.json`."""
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _is_utf8(data: bytes) -> bool:
    # UTF-16 without a mark also begins with a brace, followed by a NUL.
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _stacks(values: Mapping[str, Any]) -> Literal["upright", "swapped", "unknown"]:
    """The layout of stacked experts, from the version of PEFT that wrote the configuration."""
    version = values.get("peft_version")
    if version is None:
        return "upright" if set(values) == OUR_FIELDS else "unknown"
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(version))
    if found is None:
        return "unknown"
    release = tuple(int(part or 0) for part in found.groups())
    first = tuple(int(part) for part in LAYOUT_VERSION.split("."))
    if release == first and not re.fullmatch(r"[\d.]+(\.?post\d+)?(\+.*|@.*)?", str(version)):
        return "unknown"  # a development version may be from before or after the change
    return "swapped" if release < first else "upright"


def _refuse(values: Mapping[str, Any], where: str) -> None:
    """Name the first field that stands against a composition."""
    if (kind := values.get("peft_type")) != "LORA":
        raise SkillError(f"{where} is an adapter of type {kind}; only LORA can be composed")
    for field, reason in _REFUSED.items():
        if values.get(field) not in _OFF:
            raise SkillError(f"{where} cannot be composed: {field} is set, and {reason}")
    if (bias := values.get("bias")) not in (None, "none"):
        raise SkillError(f"{where} cannot be composed: bias is {bias!r}, so it learns biases of the base")
    start = values.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _BASE_UNCHANGED:
        raise SkillError(
            f"{where} cannot be composed: init_lora_weights is {start!r}, which changes the base's weights",
            "convert it with PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    for field in sorted(set(values) - _READ - _WITHOUT_EFFECT - set(_REFUSED)):
        if values[field] not in _EMPTY:
            raise SkillError(
                f"{where} cannot be composed: {field} = {values[field]!r} is not known to this version"
            )


def _pattern_key(patterns: Mapping[str, Any], name: str) -> str:
    """The first pattern that matches the whole name, or its end after a dot: PEFT's rule."""
    for pattern in patterns:
        if re.match(rf"(.*\.)?({pattern})$", name):
            return pattern
    return name


def _table(values: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    table = values.get(field) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{field} must be an object of names and numbers, not {table!r}")
    return table


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a rank must be a whole number above 0, not {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"an alpha must be a finite number, not {value!r}")
    return float(value)


def _names(value: Any, *, single: bool) -> str | tuple[str, ...]:
    if single and isinstance(value, str):
        # Stands for every linear layer; what is a layer and what a bare parameter then shows with the base.
        return ".*" if value.lower() == "all-linear" else value
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"targets must be a list of names, not {value!r}")
    return tuple(value)
