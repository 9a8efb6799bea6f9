"""Routers as alpha of a policy: every one of them, the defaults that hold there, and what 0.1.0 wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from expertise.errors import ExpertiseError, RecipeError
from expertise.mixture import ROUTERS
from expertise.mixture.routers.configs import RouterConfig
from expertise.policy.alpha import ALPHA, name_before, name_now, weights_of
from expertise.policy.compose import ComposedPolicy
from expertise.skills.routing import built

WEIGHERS = [name for name in ROUTERS if ROUTERS[name].context_kind != "token ids"]


@pytest.mark.parametrize("name", WEIGHERS)
def test_every_router_gives_a_finite_weight_for_each_part_at_each_state(
    name: str, weigher: Callable[[str], Any]
) -> None:
    config = weigher(name)
    assert isinstance(config, RouterConfig)
    # What a policy's file holds of it is read back.
    assert ALPHA.read(dataclasses.asdict(config)) == config  # type: ignore[call-overload]
    for states, parts in ((1, 1), (7, 3)):
        torch.manual_seed(0)
        alpha = built(config, 4, parts)
        seen = torch.randn(states, 4)
        found = weights_of(alpha, seen)
        assert found.shape == (states, parts)
        assert found.isfinite().all()
        # A state's weights do not depend on the states beside it.
        torch.testing.assert_close(weights_of(alpha, seen[-1:]), found[-1:])


def test_a_router_of_token_ids_cannot_weigh_a_policys_skills(
    make_policy: Callable[..., Any], make_skill: Callable[..., Any]
) -> None:
    with pytest.raises(ExpertiseError, match="hash router goes by token ids"):
        ComposedPolicy(make_policy(), [make_skill("walk")], ALPHA.config("hash"))


def test_a_table_that_only_names_a_router_means_the_policies_defaults() -> None:
    plain = ALPHA.config()
    assert ALPHA.read({}) == ALPHA.read({"name": "context"}) == plain
    assert (plain.hidden, plain.start, plain.squash) == ([256, 256], [], "none")
    top_p = ALPHA.read({"name": "top_p"})
    assert top_p == ALPHA.config("top_p")
    assert (top_p.p, top_p.hidden, top_p.nothing, top_p.scale) == (0.7, [256, 256], True, 1.0)
    assert ALPHA.read({"name": "top_p", "hidden": [], "nothing": False}).hidden == []
    # The defaults of a place are its own: nobody who changes a list changes them.
    plain.hidden.append(1)
    assert ALPHA.config().hidden == [256, 256]
    assert ROUTERS["top_p"].Config(p=0.5).hidden == []


def test_what_version_0_1_0_wrote_is_read() -> None:
    before = {"name": "top_p", "p": 0.6, "strength": 2.0, "hidden": [8]}
    assert ALPHA.read(before) == ALPHA.config("top_p", p=0.6, scale=2.0, hidden=[8])
    assert ALPHA.read({"name": "context", "hidden": [8], "start": []}) == ALPHA.config(hidden=[8])
    assert ALPHA.read({"name": "fixed", "values": [1.0], "learn": True}) == ALPHA.config(
        "fixed", values=[1.0], learn=True
    )
    for old, new in (
        ("alpha.router.network.0.bias", "alpha.network.0.bias"),
        ("members.1.alpha.router.weight::exp_avg", "members.1.alpha.weight::exp_avg"),
        ("alpha.trunk.0.weight", "alpha.trunk.0.weight"),
        ("alpha.values", "alpha.values"),
        ("network.alpha_router.weight", "network.alpha_router.weight"),
    ):
        assert name_now(old) == new == name_now(new)
    names = ["alpha.router.weight", "alpha.trunk.0.bias", "alpha.trunk.0.weight"]
    assert sorted(map(name_now, names), key=name_before) == list(map(name_now, names))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "contxt"}, "unknown 'contxt'"),
        ({"name": "context", "strength": 1.0}, "unknown key strength"),
        ({"name": "top_p", "strength": 1.0, "scale": 1.0}, "unknown key strength"),
        ({"name": "context", "start": "mean"}, "start: input should be"),
        ({"name": "context", "hidden": [0]}, "hidden.0: input should be at least 1"),
        ({"name": "top_p", "p": "0.5"}, "p: input should be a number"),
        ({"name": "top_k"}, "lacks k"),
    ],
)
def test_what_no_alpha_can_be_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ALPHA.read(table)


def test_weights_for_another_number_of_parts_are_refused(
    make_policy: Callable[..., Any], make_skill: Callable[..., Any]
) -> None:
    base, skills = make_policy(), [make_skill("walk"), make_skill("run")]
    for config, message in (
        (ALPHA.config(start=[1.0, 0.0, 0.0]), "start has 3 weights for 2 parts"),
        (ALPHA.config("fixed", values=[1.0]), "values has 1 weights for 2 parts"),
        (ALPHA.config("top_k", k=3), r"k \(3\) is larger than its number of parts \(2\)"),
    ):
        with pytest.raises(RecipeError, match=message):
            ComposedPolicy(base, skills, config)
