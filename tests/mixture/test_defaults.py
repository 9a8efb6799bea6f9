"""Defaults, bounds and required methods: a changed default changes every run that names no value."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest
import torch
from annotated_types import Ge, Gt, Le

from expertise.mixture import (
    LowRankExperts,
    Mixture,
    Router,
    Routes,
    SwiGLU,
    SwiGLUExperts,
    TopK,
    TopP,
    balance,
)
from expertise.mixture.parts.base import Parts
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.hash import Hash
from expertise.mixture.routers.learned import GateOptions, LearnedRouter

GATES = {
    "normalize": False,
    "scale": 1.0,
    "scores": "softmax",
    "bias_step": 0.0,
    "routing_dtype": "float32",
}

CALLS: dict[Callable[..., Any], dict[str, Any]] = {
    GateOptions: GATES,
    TopK: GATES,
    TopK.Config: {"name": "top_k", **GATES},
    TopP: {"max_parts": None, **GATES},
    TopP.Config: {"name": "top_p", "max_parts": None, "assumed_parts": 2.0, **GATES},
    Context: {"hidden": (256, 256), "squash": "none", "normalize": False},
    Hash: {"seed": 0},
    Hash.Config: {"name": "hash", "seed": 0, "balanced": False},
    Mixture: {"always": None, "dispatch": "auto"},
    LowRankExperts.joined: {"trainable": False},
    LowRankExperts.onto: {"offsets": None, "in_place": False},
    balance.relative_load: {"num_sequences": 1},
    balance.expert_balance: {"num_sequences": 1},
    Routes: {"part_ids": None, "counts": None, "logits": None},
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_defaults(call: Callable[..., Any]) -> None:
    parameters = inspect.signature(call).parameters
    found = {name: parameters[name].default for name in CALLS[call]}
    assert found == CALLS[call]
    kinds = [(type(found[name]), type(value)) for name, value in CALLS[call].items()]
    assert all(ours is theirs for ours, theirs in kinds), "False is not 0"


def test_a_context_router_s_config_has_the_defaults_of_its_constructor() -> None:
    config = Context.Config(context_dim=3)
    assert (config.name, config.hidden, config.squash, config.normalize) == (
        "context",
        [256, 256],
        "none",
        False,
    )


def test_a_router_built_from_a_plain_recipe_is_the_plain_router() -> None:
    """Options are handed on by name: none is lost or exchanged on the way."""
    options: dict[str, Any] = {
        "normalize": True,
        "scale": 2.0,
        "scores": "sigmoid",
        "bias_step": 0.5,
        "routing_dtype": "activation",
        "hidden": [6],
    }
    assert set(options) == {field.name for field in dataclasses.fields(GateOptions)}
    for plain, built in (
        (TopK(8, 4, 2), TopK.Config(k=2).build(8, 4)),
        (TopP(8, 4, 0.5), TopP.Config(p=0.5).build(8, 4)),
        (TopK(8, 4, 2, **options), TopK.Config(k=2, **options).build(8, 4)),
        (TopP(8, 4, 0.5, **options), TopP.Config(p=0.5, **options).build(8, 4)),
    ):
        assert repr(plain) == repr(built)
        assert (plain.bias is None) == (built.bias is None)


@pytest.mark.parametrize(
    "make", [lambda: TopK(500, 40, 1), lambda: TopP(500, 40, 0.5)], ids=["top-k", "top-p"]
)
def test_centroids_start_with_a_standard_deviation_of_one_over_the_width(make: Any) -> None:
    weight = make().weight.detach()
    assert float(weight.std()) == pytest.approx(1 / 500, rel=0.03)
    assert abs(float(weight.mean())) < 4 / 500 / weight.numel() ** 0.5


def test_a_fresh_bias_is_zero_and_float32() -> None:
    bias = TopK(8, 4, 2, bias_step=0.1).bias
    assert bias is not None
    assert torch.equal(bias, torch.zeros(4))


# --- bounds and required methods --------------------------------------------------------------------------

BOUNDS: dict[Any, dict[str, list[Any]]] = {
    GateOptions: {"bias_step": [Ge(0)]},
    TopK.Config: {"k": [Ge(1)], "bias_step": [Ge(0)]},
    TopP.Config: {"p": [Gt(0), Le(1)], "max_parts": [Ge(1)], "assumed_parts": [Ge(1)]},
    Context.Config: {"context_dim": [Ge(0)]},
    Hash.Config: {"seed": [Ge(0)]},
    SwiGLU.Config: {"hidden": [Ge(0)]},
    SwiGLUExperts.Config: {"num_parts": [Ge(1)], "hidden": [Ge(1)]},
    LowRankExperts.Config: {"num_parts": [Ge(1)], "rank": [Ge(1)]},
}


@pytest.mark.parametrize("config", BOUNDS, ids=lambda config: config.__qualname__)
def test_bounds_of_recipes(config: Any) -> None:
    """A recipe is checked against these before `__post_init__` sees the numbers."""
    hints = get_type_hints(config, include_extras=True)
    for name, bounds in BOUNDS[config].items():
        # The annotated number stands alone, or beside None.
        numbers = [hint for hint in (hints[name], *get_args(hints[name])) if hasattr(hint, "__metadata__")]
        assert [list(number.__metadata__) for number in numbers] == [bounds], name


@pytest.mark.parametrize("config", BOUNDS, ids=lambda config: config.__qualname__)
def test_configurations_are_frozen_and_take_keywords_alone(config: Any) -> None:
    assert config.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))


def test_the_ends_of_the_bounds_are_allowed() -> None:
    TopP.Config(p=1.0, max_parts=1, assumed_parts=1.0, bias_step=0.0)
    TopK.Config(k=1).check(1)
    TopP.Config(p=1e-9, max_parts=4).check(4)
    Context(1, 1, [1])
    Hash(1, 1)


def test_what_a_new_kind_must_have() -> None:
    assert Parts.__abstractmethods__ == {"one", "grouped", "dense", "reset_parameters"}
    assert Router.__abstractmethods__ == {"forward"}
    assert {"num_slots", "num_least", "num_used"} <= LearnedRouter.__abstractmethods__
