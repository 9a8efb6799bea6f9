"""Values that hold where nobody says anything: a changed default changes runs that name no value."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from expertise.mixture import LowRankExperts, Mixture, Routes, TopK, TopP, balance
from expertise.mixture.routers.context import Context
from expertise.mixture.routers.hash import Hash
from expertise.mixture.routers.learned import GateOptions

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
