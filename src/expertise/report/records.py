"""Typed records of the pages: what was measured, with a default for everything that may be missing.

`to_json` turns a record into the values of its JSON file, and `from_json` turns such values into a record.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

Record = TypeVar("Record")
ByDomain = Mapping[str, float | None]
"""Domain (or "mean") → value; None where there is no text."""


OPTIONAL = {"optional": True}
"""Marks a field that the JSON file leaves out where it has its default; other fields are always written."""


@dataclass(frozen=True, kw_only=True)
class TrainPoint:
    """Logged values of one training step; `balance` maps a balance loss's name to its value."""

    step: int | None = None
    tokens: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    largest_bias: float | None = field(default=None, metadata=OPTIONAL)
    balance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PartsPerToken:
    """Means of the number of parts per token; `histogram[layer][n]` counts the tokens with n + 1 parts."""

    mean: float | None = None
    std: float | None = field(default=None, metadata=OPTIONAL)
    layers: Sequence[float | None] = ()
    domains: ByDomain = field(default_factory=dict)
    domains_by_layer: Mapping[str, Sequence[float | None]] | None = field(default=None, metadata=OPTIONAL)
    histogram: Sequence[Sequence[int]] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class EvaluationPoint:
    """One evaluation while training, as in `metrics.jsonl`; `loads[layer][part]` have mean 1."""

    kind: str = "evaluation"
    step: int | None = None
    tokens: int | None = None
    bits_per_byte: ByDomain = field(default_factory=dict)
    bytes: Mapping[str, int] | None = field(default=None, metadata=OPTIONAL)
    parts_per_token: PartsPerToken | None = field(default=None, metadata=OPTIONAL)
    loads: Sequence[Sequence[float]] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Values over training."""

    train: Sequence[TrainPoint] = ()
    evaluations: Sequence[EvaluationPoint] = ()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Time of a training, evaluations included."""

    seconds: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A routed expert, the domain with its largest lift, and the tokens it takes most above their share."""

    id: int | None = None
    load: float | None = None
    domain: str | None = None
    lift: float | None = None
    tokens: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A mixture layer on validation text.

    `domain_share[expert][domain]` and `domain_prior[domain]` are shares of the expert's and of all tokens.
    """

    layer: int | None = None
    num_parts: int | None = None
    always_hidden: int = 0
    part_hidden: int | None = None
    load: Sequence[float] = ()
    domain_share: Sequence[Sequence[float]] = ()
    domain_prior: Sequence[float] = ()
    mutual_information: float | None = None
    parts: Sequence[Expert] = ()


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token with the ids and gates of its experts in each layer, or with the weight of each skill."""

    text: str = ""
    parts: Sequence[Sequence[int]] = field(default=(), metadata=OPTIONAL)
    gates: Sequence[Sequence[float]] = field(default=(), metadata=OPTIONAL)
    alpha: Sequence[float] = field(default=(), metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """The beginning of a domain's text."""

    domain: str = ""
    tokens: Sequence[Token] = ()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The last evaluation and the use of experts on the validation text; None in a model without experts."""

    parts_per_token: PartsPerToken | None = field(default=None, metadata=OPTIONAL)
    share_at_max_parts: float | None = None
    max_parts: int | None = None
    tokens_counted: int | None = field(default=None, metadata=OPTIONAL)
    bits_per_byte: ByDomain | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that the model wrote, after a given beginning."""

    prompt: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class LanguageModelRecord:
    """A run of a language model: `report.json`.

    `sizes` maps `parameters_total`, `parameters_activated`, `flops_per_sequence` and kinds of parameters to
    numbers; `compressors` maps a program to its bits per byte.
    """

    title: str = "language model"
    state: str = ""
    step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seed: int | None = None
    domains: Sequence[str] = ()
    curves: Curves = Curves()
    sizes: Mapping[str, int | float] = field(default_factory=dict)
    timing: Timing = Timing()
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe: str = ""
    source_changed: bool | None = None
    notes: Sequence[str] = ()
    layers: Sequence[Layer] = ()
    passages: Sequence[Passage] = ()
    summary: Summary | None = field(default=None, metadata=OPTIONAL)
    compressors: Mapping[str, ByDomain] | None = field(default=None, metadata=OPTIONAL)
    samples: Sequence[Sample] = ()

    @property
    def layer_names(self) -> list[str]:
        """Each mixture layer by its index in the model."""
        return [f"layer {i if each.layer is None else each.layer}" for i, each in enumerate(self.layers)]

    @property
    def parts_per_token(self) -> PartsPerToken:
        """The use of experts on the validation text, empty where it was not counted."""
        return (self.summary and self.summary.parts_per_token) or PartsPerToken()

    @property
    def bits_per_byte(self) -> ByDomain:
        """The last evaluation, empty where there was none."""
        return (self.summary and self.summary.bits_per_byte) or {}


@dataclass(frozen=True, kw_only=True)
class SkillEnergy:
    """A skill; `energy[r]` is the share of ΔW's squared norm within the first r + 1 ranks."""

    name: str = ""
    energy: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class SkillFacts(SkillEnergy):
    """A skill with what its card says; `weights` counts the matrices that it adapts."""

    purpose: str = ""
    rank: int | None = None
    parameters: int | None = None
    weights: int | None = None
    data: str | None = None
    date: str | None = None
    parents: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The router of a composition and its input, or constant weights, skill → alpha."""

    router: str | None = None
    reads: str | None = None
    weights: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SkillBits:
    """Bits per byte by domain: of the base, of each skill alone, of all with weight 1 / K, and composed."""

    base: ByDomain = field(default_factory=dict)
    skills: Mapping[str, ByDomain] = field(default_factory=dict)
    uniform: ByDomain = field(default_factory=dict)
    composed: ByDomain = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation over tokens."""

    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class SkillsRecord:
    """A composed language model and its skills: `skills.json`.

    `similarity` maps a measure to K × K values, `alpha` a domain to each skill's weight over its tokens.
    """

    title: str = "skills"
    base: str = ""
    domains: Sequence[str] = ()
    composition: Weights = Weights()
    skills: Sequence[SkillFacts] = ()
    bits_per_byte: SkillBits = SkillBits()
    similarity: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    proposals: Sequence[str] = ()
    alpha: Mapping[str, Mapping[str, Spread]] = field(default_factory=dict)
    passages: Sequence[Passage] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A policy's mean, its standard error, and the figure of a paper beside it."""

    name: str = ""
    mean: float = 0.0
    error: float | None = None
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of several policies, in one setting where its group has several."""

    name: str = ""
    setting: str = field(default="", metadata=OPTIONAL)
    rows: Sequence[Outcome] = ()


@dataclass(frozen=True, kw_only=True)
class Group:
    """Metrics under one title."""

    title: str = ""
    metrics: Sequence[Metric] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line per policy: its name → pairs of x and mean."""

    title: str = ""
    x_label: str = ""
    log: bool = False
    lines: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """An episode step by step.

    `alpha[step]` has one weight for each of `names`, of which `safety` is the skill for safety. `risk` is the
    value of the safety critic, positive where it expects a cost; `frames` are pictures as data URLs.
    """

    method: str = ""
    safety: str = field(default="", metadata=OPTIONAL)
    where: str = field(default="", metadata=OPTIONAL)
    names: Sequence[str] = ()
    episode: int = 0
    frame_steps: Sequence[int] = ()
    rewards: Sequence[float] = ()
    costs: Sequence[float] = ()
    alpha: Sequence[Sequence[float]] | None = None
    positions: Sequence[Sequence[float]] | None = None
    risk: Sequence[float] | None = None
    frames: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    """Policies in one environment or several settings: `policy.json`; `ours` is the row of the headline."""

    title: str = "policies"
    environment: str = ""
    ours: str = field(default="", metadata=OPTIONAL)
    groups: Sequence[Group] = ()
    curves: Sequence[Curve] = ()
    trace: Episode | None = field(default=None, metadata=OPTIONAL)
    skills: Sequence[SkillEnergy] | None = field(default=None, metadata=OPTIONAL)
    similarity: Mapping[str, Sequence[Sequence[float]]] | None = field(default=None, metadata=OPTIONAL)
    proposals: Sequence[str] | None = field(default=None, metadata=OPTIONAL)
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def to_json(record: Any) -> Any:
    """The values of a record's JSON file."""
    if dataclasses.is_dataclass(record):
        return {
            each.name: to_json(value)
            for each in dataclasses.fields(record)
            if (value := getattr(record, each.name)) != each.default or not each.metadata
        }
    if isinstance(record, Mapping):
        return {key: to_json(value) for key, value in record.items()}
    return [to_json(value) for value in record] if isinstance(record, list | tuple) else record


def from_json(cls: type[Record], values: Mapping[str, Any]) -> Record:
    """A record from the values of its JSON file, whose unknown entries are ignored and null ones missing."""
    hints = _hints(cls)  # type: ignore[arg-type]
    return cls(**{key: _typed(hint, values[key]) for key, hint in hints if values.get(key) is not None})


@functools.cache
def _hints(cls: Hashable) -> list[tuple[str, Any]]:
    return list(typing.get_type_hints(cls).items())


def _typed(hint: Any, value: Any) -> Any:
    inner = typing.get_args(hint)
    if isinstance(hint, types.UnionType) and types.NoneType in inner:
        return None if value is None else _typed(inner[0], value)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value)  # type: ignore[arg-type]
    if hint is float:
        return float(value)
    if typing.get_origin(hint) is Mapping:
        return {key: _typed(inner[1], each) for key, each in value.items()}
    return [_typed(inner[0], each) for each in value] if typing.get_origin(hint) is Sequence else value
