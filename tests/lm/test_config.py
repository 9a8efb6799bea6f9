"""Sizes without a tensor equal those of the built model and the papers'; the layer rule; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from expertise.errors import RecipeError
from expertise.lm.config import LayerOverride, ModelConfig
from expertise.lm.model import LanguageModel
from expertise.mixture import LowRankExperts, SwiGLU, SwiGLUExperts, TopK, TopP

TOP_P = TopP.Config(p=0.4, max_parts=3)
TOP_K = TopK.Config(k=2)
PARTS = SwiGLUExperts.Config(num_parts=6, hidden=12)
SMALL: dict[str, Any] = {"dim": 16, "num_layers": 3, "num_heads": 4, "context": 8, "vocab_size": 50}
MIXED = {**SMALL, "router": TOP_P, "parts": PARTS}

CONFIGS: dict[str, dict[str, Any]] = {
    "mixture": MIXED,
    "dense": {**SMALL, "dense_hidden": 20},
    "shared": {**MIXED, "always": SwiGLU.Config(hidden=7)},
    "grouped queries": {**MIXED, "num_kv_heads": 2},
    "one key head": {**MIXED, "num_kv_heads": 1, "qkv_bias": True},
    "tied": {**MIXED, "tied": True},
    "bias": {**MIXED, "qkv_bias": True},
    "normed heads": {**MIXED, "qk_norm": True},
    "first dense": {**MIXED, "first_dense": 1, "dense_hidden": 30},
    "every other": {**MIXED, "every": 2, "dense_hidden": 30, "always": SwiGLU.Config(hidden=7)},
    "low rank": {**MIXED, "parts": LowRankExperts.Config(num_parts=5, rank=3)},
    "top-k": {**MIXED, "router": TOP_K},
    "overrides": {
        **MIXED,
        "router": TOP_K,
        "always": SwiGLU.Config(hidden=7),
        "override": [
            LayerOverride(layers=[0, 2], num_parts=9, k=4),
            LayerOverride(layers=[2], num_parts=3, k=1),
        ],
    },
    "everything": {
        **MIXED,
        "num_layers": 5,
        "num_kv_heads": 1,
        "qkv_bias": True,
        "qk_norm": True,
        "tied": True,
        "first_dense": 2,
        "every": 2,
        "dense_hidden": 21,
        "always": SwiGLU.Config(hidden=7),
        "override": [LayerOverride(layers=[4], num_parts=11, p=0.9)],
    },
}


def kind_of(name: str) -> str:
    """By the module a parameter lies in, not by the configuration."""
    for mark, kind in {
        "embedding": "embedding",
        "head": "head",
        "norm": "norms",
        "attention": "attention",
        "router": "router",
        "parts": "routed",
        "always": "always",
    }.items():
        if any(part == mark or (mark == "norm" and part.endswith("norm")) for part in name.split(".")):
            return kind
    assert "feed_forward" in name
    return "dense"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_counts_equal_those_of_the_built_model(name: str) -> None:
    config = ModelConfig(**CONFIGS[name])
    model = LanguageModel(config)
    counted = dict.fromkeys(config.num_params_by_kind(), 0)
    for parameter_name, parameter in model.named_parameters():
        counted[kind_of(parameter_name)] += parameter.numel()
    assert config.num_params_by_kind() == counted
    assert config.num_params() == sum(p.numel() for p in model.parameters())
    # Activated: of each mixture so many parts as its router takes.
    unused = 0.0
    for index, mixture in model.mixtures().items():
        layer = config.layer(index)
        assert layer is not None
        per_part = sum(p.numel() for p in mixture.parts.parameters()) / mixture.parts.num_parts
        taken = layer.router.k if isinstance(layer.router, TopK.Config) else layer.router.assumed_parts
        unused += (mixture.parts.num_parts - taken) * per_part
    assert config.num_active_params() == config.num_params() - unused


def published(**fields: Any) -> ModelConfig:
    return ModelConfig(**fields)


def test_the_papers_sizes() -> None:
    two = published(
        dim=1280,
        num_layers=9,
        num_heads=10,
        context=2048,
        vocab_size=8192,
        router=TopK.Config(k=7),
        parts=SwiGLUExperts.Config(num_parts=63, hidden=853),
        always=SwiGLU.Config(hidden=853),
    )
    assert two.num_params() / 1e9 == pytest.approx(1.967, abs=5e-4)
    assert two.num_active_params() / 1e9 == pytest.approx(0.317, abs=5e-4)
    assert two.flops_per_sequence() / 1e12 == pytest.approx(4.34, abs=5e-3)
    sixteen = published(
        dim=2048,
        num_layers=28,
        num_heads=16,
        context=4096,
        vocab_size=102_400,
        first_dense=1,
        dense_hidden=10_944,
        router=TopK.Config(k=6),
        parts=SwiGLUExperts.Config(num_parts=64, hidden=1408),
        always=SwiGLU.Config(hidden=2 * 1408),
    )
    assert sixteen.num_params() / 1e9 == pytest.approx(16.376, abs=5e-4)
    assert sixteen.num_active_params() / 1e9 == pytest.approx(2.829, abs=5e-4)
    assert sixteen.flops_per_sequence() / 1e12 == pytest.approx(75.9, abs=5e-2)
    llama = published(
        dim=4096, num_layers=32, num_heads=32, context=4096, vocab_size=32_000, dense_hidden=11_008
    )
    assert llama.num_params() / 1e9 == pytest.approx(6.738, abs=5e-4)
    assert llama.num_active_params() == llama.num_params()
    assert llama.flops_per_sequence() / 1e12 == pytest.approx(188.8, abs=5e-2)


@pytest.mark.parametrize(
    ("first", "every", "expected"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5]),
        (1, 1, [1, 2, 3, 4, 5]),
        (0, 2, [0, 2, 4]),
        (1, 2, [2, 4]),  # counted from layer 0, not from the first mixture
        (2, 2, [2, 4]),
        (4, 3, []),
        (9, 1, []),
    ],
)
def test_which_layers_are_mixtures(first: int, every: int, expected: list[int]) -> None:
    config = ModelConfig(**{**MIXED, "num_layers": 6}, first_dense=first, every=every, dense_hidden=8)
    assert config.mixture_layers == expected
    assert sorted(LanguageModel(config).mixtures()) == expected


def test_overrides_reach_the_layers_they_name_only() -> None:
    model = LanguageModel(ModelConfig(**CONFIGS["overrides"]))
    routers = {index: mixture.router for index, mixture in model.mixtures().items()}
    assert {i: (r.num_parts, r.k) for i, r in routers.items()} == {0: (9, 4), 1: (6, 2), 2: (3, 1)}
    changed = LanguageModel(ModelConfig(**MIXED, override=[LayerOverride(layers=[1], p=0.9)]))
    assert [mixture.router.p for mixture in changed.mixtures().values()] == [0.4, 0.9, 0.4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, r"model\.dim \(16\) is not a multiple of model\.num_heads \(3\)"),
        ({"num_heads": 16}, r"model\.dim / model\.num_heads \(1\) must be even"),
        ({"num_kv_heads": 3}, r"model\.num_heads \(4\) is no multiple of model\.num_kv_heads \(3\)"),
        ({"num_kv_heads": 8}, r"model\.num_heads \(4\) is no multiple of model\.num_kv_heads \(8\)"),
        ({"router": None}, r"model\.router and model\.parts belong together"),
        ({"parts": None}, r"model\.router and model\.parts belong together"),
        ({"first_dense": 1}, r"layer 0 is dense: set model\.dense_hidden"),
        ({"router": TopK.Config(k=7)}, r"model\.router.*k \(7\) .*6"),
        ({"router": TopP.Config(p=0.4, max_parts=7)}, r"model\.router.*max_parts \(7\) .*6"),
        ({"override": [LayerOverride(layers=[0], p=1.5)]}, r"model\.override.*p .*1\.5"),
        ({"override": [LayerOverride(layers=[3], p=0.5)]}, r"model\.override names layer 3"),
        ({"override": [LayerOverride(layers=[-1], p=0.5)]}, r"model\.override names layer -1"),
        ({"override": [LayerOverride(layers=[0], k=1)]}, r"model\.override sets k, which 'top_p' does not"),
        (
            {"router": TOP_K, "override": [LayerOverride(layers=[0], p=0.5)]},
            r"model\.override sets p, which 'top_k' does not",
        ),
        (
            {"router": TOP_K, "override": [LayerOverride(layers=[1], num_parts=1)]},
            r"model\.override.*\(2\) .*\(1\)",
        ),
        (
            {"first_dense": 1, "dense_hidden": 8, "override": [LayerOverride(layers=[0], p=0.5)]},
            r"model\.override names layer 0, which is no mixture layer",
        ),
    ],
)
def test_fields_that_disagree_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ModelConfig(**{**MIXED, **change})


def test_sizes_and_models_need_a_vocabulary() -> None:
    config = ModelConfig(**{**MIXED, "vocab_size": 0})
    with pytest.raises(RecipeError, match=r"model\.vocab_size"):
        config.num_params()
    with pytest.raises(RecipeError, match=r"model\.vocab_size"):
        LanguageModel(config)


def test_counting_allocates_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was made")

    config = ModelConfig(**CONFIGS["everything"])
    for name in ("empty", "zeros", "ones", "tensor", "arange"):
        monkeypatch.setattr(torch, name, forbidden)
    monkeypatch.setattr(nn.Parameter, "__new__", forbidden)
    assert config.num_params() > config.num_active_params() > 0
    assert config.flops_per_sequence() > 0
