"""A new skill: how it starts, that it learns alone, and what comes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from builders import (
    LANGUAGE_MODELS,
    by_hand,
    close,
    llama,
    logits_of,
    net,
    own_model,
    same_state,
    some_skills,
    state_of,
    tokens,
)
from torch import nn
from torch.nn import functional as F

from expertise.errors import SkillError
from expertise.mixture import Context
from expertise.skills import Skill, compose, find_targets, merged
from expertise.skills.learn import SkillConfig, fresh, learnt, trainable


@pytest.mark.parametrize("make", LANGUAGE_MODELS.values(), ids=list(LANGUAGE_MODELS))
def test_a_fresh_skill_does_nothing_yet(make: Any) -> None:
    base, ids = make(), tokens()
    skill = fresh(base, "new", SkillConfig(rank=3))
    assert list(skill.factors) == list(find_targets(base, "all"))
    assert {f.rank for f in skill.factors.values()} == {3}
    assert torch.equal(logits_of(compose(base, [], growing=skill), ids), logits_of(base, ids))
    assert not any(f.B.any() for f in skill.factors.values())


def test_how_it_starts() -> None:
    base = own_model(dim=256)
    targets = ["embedding", "blocks.0.attention.qkv", "experts"]
    skill = fresh(base, "new", SkillConfig(targets=targets, rank=16), seed=4)
    for address, f in skill.factors.items():
        # LeCun: 1 / sqrt(fan-in); a column of an embedding is picked, so that its fan-in is the rank.
        spread = 16**-0.5 if f.embedding else f.in_features**-0.5
        assert f.A.std().item() == pytest.approx(spread, rel=0.1), address
        assert f.A.dtype == torch.float32
    experts = skill.factors["blocks.1.feed_forward.parts.gate_up"].A
    assert not torch.equal(experts[0], experts[1])
    again, other = (fresh(base, "new", SkillConfig(targets=targets, rank=16), seed=s) for s in (4, 5))
    assert all(torch.equal(f.A, again.factors[a].A) for a, f in skill.factors.items())
    assert not any(torch.equal(f.A, other.factors[a].A) for a, f in skill.factors.items())
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    fresh(base, "new", SkillConfig(targets=targets))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("convention", "scaling"), [("alpha/r", 2.0), ("alpha/sqrt(r)", 4.0), ("raw", 8.0)])
def test_what_alpha_means(convention: Any, scaling: float) -> None:
    config = SkillConfig(rank=4, alpha=8.0, scale_convention=convention)
    assert config.scaling == scaling
    skill = fresh(net(), "new", dataclasses.replace(config, targets=["first"]))
    assert skill.factors["first"].scaling == scaling


def test_settings_that_cannot_be() -> None:
    for settings, message in (
        ({"rank": 0}, "rank must be above 0"),
        ({"alpha": 0.0}, "alpha must be finite and not 0"),
        ({"alpha": float("inf")}, "alpha must be finite and not 0"),
    ):
        with pytest.raises(SkillError, match=message):
            SkillConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(SkillError, match="called 'qkvv'"):
        fresh(own_model(), "new", SkillConfig(targets=["qkvv"]))
    with pytest.raises(SkillError, match="at least one weight"):
        fresh(own_model(), "new", SkillConfig(targets=[]))


def learn(model: Any, steps: int = 20) -> list[float]:
    """Next-token losses while everything that learns follows its gradient."""
    ids = tokens(4, 9)
    optimizer = torch.optim.Adam(trainable(model), lr=0.02)
    losses = []
    model.train()
    for _ in range(steps):
        out = model(ids[:, :-1])
        logits = out if isinstance(out, torch.Tensor) else out.logits
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("make", [own_model, llama])
def test_a_skill_learns_beside_others_and_nothing_else_does(make: Any) -> None:
    base, ids = make(), tokens()
    old = some_skills(base, "all", "all-linear")
    copies = [skill.to(dtype=torch.float32) for skill in old]
    new = fresh(base, "new", SkillConfig(rank=2, targets=["all"]))
    before = state_of(base)
    model: Any = compose(base, old, weights=[0.7, -0.3], growing=new)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learns) == 2 * len(new.factors)
    frozen = {name: p.clone() for name, p in model.named_parameters() if name not in learns}
    losses = learn(model)
    assert losses[-1] < losses[0] - 0.1
    same_state(before, state_of(base))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in learns), name
        if name not in learns:
            assert torch.equal(parameter, frozen[name]), name
    for skill, copy in zip(old, copies, strict=True):
        assert all(torch.equal(f.A, copy.factors[a].A) for a, f in skill.factors.items())
    # What it became, apart from the model, does beside the others what it did there.
    grown = learnt(model, "new")
    assert any(f.B.any() for f in grown.factors.values())
    assert all(f.A.is_contiguous() and f.B.is_contiguous() for f in grown.factors.values())
    expected = logits_of(by_hand(base, [*old, grown], [0.7, -0.3, 1.0]), ids)
    close(logits_of(model, ids), expected)
    close(logits_of(compose(base, [*old, grown], weights=[0.7, -0.3, 1.0]), ids), expected)
    close(logits_of(merged(model), ids), expected)
    kept = grown.factors[next(iter(grown.factors))].B.clone()
    learn(model, 2)
    assert torch.equal(grown.factors[next(iter(grown.factors))].B, kept)
    # The skill that was given to start from is as it was.
    assert not any(f.B.any() for f in new.factors.values())


def test_a_skill_and_a_router_learn_together() -> None:
    base = own_model()
    old = some_skills(base, "all")
    torch.manual_seed(0)
    router = Context(32, 2, (7,))
    new = fresh(base, "new", SkillConfig(rank=2))
    model: Any = compose(base, old, router=router, reads="pooled", growing=new)
    start = [p.detach().clone() for p in router.parameters()]
    losses = learn(model)
    assert losses[-1] < losses[0] - 0.3
    assert set(map(id, router.parameters())) < set(map(id, trainable(model)))
    assert all(not torch.equal(a, b) for a, b in zip(start, router.parameters(), strict=True))
    assert all(p.grad is None for p in base.parameters())


def test_a_router_learns_alone() -> None:
    base = own_model()
    torch.manual_seed(0)
    model: Any = compose(base, some_skills(base, "all", "all"), router=Context(32, 2, (7,)), reads="pooled")
    assert set(map(id, trainable(model))) == set(map(id, model.composition.router.parameters()))
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    learn(model, 3)
    for before, after in zip(frozen, [p for p in model.parameters() if not p.requires_grad], strict=True):
        assert torch.equal(before, after)


def test_weights_of_the_others_while_a_skill_grows() -> None:
    base, ids = own_model(), tokens()
    a, b = some_skills(base, "all", "all")
    new = some_skills(base, "all", "all", "all")[2]
    for weights, expected in (
        (None, [0.0, 0.0, 1.0]),
        ([0.7, -0.3], [0.7, -0.3, 1.0]),
        ([0.7, -0.3, 0.5], [0.7, -0.3, 0.5]),
        ({"b": -0.3}, [0.0, -0.3, 1.0]),
        ({"b": -0.3, "c": 2.0}, [0.0, -0.3, 2.0]),
    ):
        model: Any = compose(base, [a, b], weights=weights, growing=new)  # type: ignore[arg-type]
        close(model.composition.default_weights(), torch.tensor(expected), 1e-7)
        close(logits_of(model, ids), logits_of(by_hand(base, [a, b, new], expected), ids), 4e-5)
    with pytest.raises(SkillError, match="3 skills need as many weights, not 2"):
        compose(base, [a, b], weights=[1.0], growing=new)


def test_a_skill_grows_in_the_base_s_own_dtype() -> None:
    base = own_model().bfloat16()
    model: Any = compose(base, [], growing=fresh(base, "new", SkillConfig(rank=2)))
    assert {p.dtype for p in trainable(model)} == {torch.bfloat16}
    losses = learn(model)
    assert losses[-1] < losses[0]


def test_only_a_skill_of_the_model_can_be_taken_out() -> None:
    base = net()
    model = compose(base, [], growing=fresh(base, "new", SkillConfig(targets=["*"])))
    with pytest.raises(SkillError, match="no skill 'neww'") as refused:
        learnt(model, "neww")
    assert refused.value.hints == ("did you mean 'new'?",)
    with pytest.raises(SkillError, match="not composed"):
        learnt(base, "new")


def test_policies_learn_skills_too() -> None:
    """The same on a module that is no language model, with a Conv1D-free, cache-free forward."""
    base, x = net(), torch.randn(16, 6)
    wanted = torch.randn(16, 3)
    model: Any = compose(base, [], growing=fresh(base, "new", SkillConfig(targets=["*"], rank=4)))
    optimizer = torch.optim.Adam(trainable(model), lr=0.02)
    first = F.mse_loss(model(x), wanted).item()
    for _ in range(40):
        loss = F.mse_loss(model(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first
    grown = learnt(model, "new")
    assert isinstance(grown, Skill)
    close(compose(base, [grown], weights=[1.0])(x), model(x))
    assert isinstance(model, nn.Module)
