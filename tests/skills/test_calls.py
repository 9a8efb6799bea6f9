"""Calls of a composed model: what may be given, what is refused, what a call leaves behind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from builders import LANGUAGE_MODELS, by_hand, close, llama, logits_of, net, own_model, some_skills, tokens
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.lm.attention import KeyValueCache
from expertise.mixture import Context, TopK
from expertise.skills import compose

every_model = pytest.mark.parametrize("make", LANGUAGE_MODELS.values(), ids=list(LANGUAGE_MODELS))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": [1.0]}, r"weights of shape \[1\] do not fit 2 skills"),
        ({"weights": torch.ones(3)}, r"weights of shape \[3\] do not fit 2 skills"),
        ({"weights": torch.ones(())}, r"weights of shape \[\] do not fit 2 skills"),
        ({"weights": 1.0}, r"weights of shape \[\] do not fit 2 skills"),
        ({"weights": [[1.0, 0.0], [1.0]]}, "weights of skills are numbers"),
        ({"weights": ["a", "b"]}, "weights of skills are numbers"),
        ({"weights": "ab"}, "weights of skills are numbers"),
        ({"weights": [float("inf"), 0.0]}, "weights of skills must be finite"),
        ({"weights": {"a": float("nan")}}, "weights of skills must be finite"),
        ({"weights": {"aa": 1.0}}, "this model has no skill 'aa'"),
        ({"weights": {"a": "much"}}, "weights of skills are numbers"),
        ({"skills": "a"}, "skills is a list with one entry per row"),
        ({"skills": 3}, "skills is a list with one entry per row"),
        ({"skills": ["a", "zz", None]}, "this model has no skill 'zz'"),
        ({"skills": ["a", 1, None]}, "an entry of skills is a name, names with weights, or None, not 1"),
        ({"skills": ["a", [0.5, 0.5], None]}, "an entry of skills is a name"),
        ({"skills": ["a", {"b": float("nan")}, None]}, "must be finite"),
        ({"skills": ["a", "b"]}, "weights for 2 rows do not fit"),
        ({"weights": [1.0, 0.0], "skills": ["a", None, None]}, "one of weights, skills and context, not"),
        ({"weights": [1.0, 0.0], "context": torch.ones(3, 4)}, "one of weights, skills and context, not"),
        ({"context": torch.ones(3, 4)}, "no router that reads a context"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(given: Any, message: str) -> None:
    base, ids = own_model(), tokens()
    model = compose(base, some_skills(base, "all", "all"), weights=[0.7, -0.3])
    expected = logits_of(model, ids)
    with pytest.raises(SkillError, match=message) as refused:
        model(ids, **given)
    assert "\n" not in refused.value.message
    assert torch.equal(logits_of(model, ids), expected)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    base = own_model()
    model: Any = compose(base, {"prose": some_skills(base, "all")[0]})
    with pytest.raises(SkillError) as refused:
        model(tokens(), skills=["porse", None, None])
    assert refused.value.hints == ("did you mean 'prose'?",)
    with pytest.raises(SkillError, match="unknown argument 'weight'"), model.composition.using(weight=1):
        pass


@every_model
def test_an_error_inside_a_call_leaves_the_model_usable(make: Any) -> None:
    base, ids = make(), tokens()
    skills = some_skills(base, "all", "all-linear")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    expected = logits_of(model, ids)
    out_of_range = torch.full((3, 4), 64)
    for call in (
        lambda: model(out_of_range, weights=[0.0, 5.0]),
        lambda: model(out_of_range, skills=["a", None, "b"]),
        lambda: model(ids[:, None].expand(3, 2, 10, 10), weights=[0.0, 5.0]),
    ):
        with pytest.raises((IndexError, TypeError, ValueError, RuntimeError)):
            call()
        assert torch.equal(logits_of(model, ids), expected)
    if make is own_model:
        with pytest.raises(IndexError):
            model(out_of_range, weights=[0.0, 5.0])
        # The failed call must not be taken for one that still goes on.
        assert torch.equal(model.hidden(ids, weights=[0.0, 0.0]), base.hidden(ids))


# --- what may be given --------------------------------------------------------------------------------------


def test_a_method_that_stands_for_the_model_s_call_hears_the_same() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    head = base.head_weight.T
    with torch.no_grad():
        for given in ({}, {"weights": [0.2, 0.4]}, {"skills": ["a", None, {"b": 2.0}]}):
            close(model.hidden(ids, **given) @ head, model(ids, **given))
        assert not torch.equal(model.hidden(ids, weights=[0.2, 0.4]), model.hidden(ids))
        router = Context(4, 2, (5,))
        routed: Any = compose(base, skills, router=router)
        context = torch.randn(3, 4)
        close(routed.hidden(ids, context=context) @ head, routed(ids, context=context))
        with pytest.raises(SkillError, match="reads a context"):
            routed.hidden(ids)


def test_within_using_every_call_gets_the_same() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    expected = {
        tuple(w): logits_of(by_hand(base, skills, w), ids) for w in ([0.7, -0.3], [1.0, 0.0], [0.0, 2.0])
    }
    with model.composition.using(weights=[1.0, 0.0]):
        close(logits_of(model, ids), expected[1.0, 0.0])
        # A call's own comes first, of whichever kind; the innermost context before the others.
        close(logits_of(model, ids, skills=[{"b": 2.0}] * 3), expected[0.0, 2.0])
        with model.composition.using(skills=[{"b": 2.0}] * 3):
            close(logits_of(model, ids), expected[0.0, 2.0])
        with model.composition.using(weights=None):
            close(logits_of(model, ids), expected[0.7, -0.3])
        close(logits_of(model, ids), expected[1.0, 0.0])
    close(logits_of(model, ids), expected[0.7, -0.3])
    with pytest.raises(KeyError), model.composition.using(weights=[1.0, 0.0]):
        raise KeyError
    close(logits_of(model, ids), expected[0.7, -0.3])
    with (
        pytest.raises(SkillError, match="not weights and skills"),
        model.composition.using(weights=[1.0, 0.0], skills=["a"] * 3),
    ):
        pass


class Conditioned(nn.Module):
    """A base whose own forward has an argument of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layer(x) + context  # type: ignore[no-any-return]


def test_an_argument_of_the_base_s_own_stays_its_own() -> None:
    base, x, context = Conditioned(), torch.randn(3, 4), torch.randn(3, 4)
    skills = some_skills(base, "layer")
    model: Any = compose(base, skills, weights=[1.0])
    expected = by_hand(base, skills, [1.0])(x, context)
    close(model(x, context=context), expected)
    close(model(x, context), expected)
    router = Context(2, 1, (3,))
    routed: Any = compose(base, skills, router=router)
    given = torch.randn(3, 2)
    with routed.composition.using(context=given):
        found = routed(x, context=context)
    close(found, model(x, context, weights=router(given, given).weights()))


@every_model
def test_any_numbers_will_do(make: Any) -> None:
    base, ids = make(), tokens()
    skills = some_skills(base, "all", "all-linear")
    model = compose(base, skills)
    expected = logits_of(by_hand(base, skills, [2.0, -1.0]), ids)
    for weights in (
        [2, -1],
        torch.tensor([2, -1]),
        torch.tensor([2.0, -1.0]).numpy(),
        torch.tensor([[2, -1]]),
    ):
        close(logits_of(model, ids, weights=weights), expected, 4e-5)


# --- with a cache -------------------------------------------------------------------------------------------


def test_our_cache_by_position_and_by_name() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    model: Any = compose(base, skills)
    table = torch.tensor([[0.7, -0.3], [0.0, 0.0], [0.0, 1.0]])
    whole = logits_of(model, ids, weights=table)
    for named in (False, True):
        cache = KeyValueCache(base.config, 3, base.embedding.weight)
        parts = []
        for piece in ids.split([4, 1, 5], dim=1):
            more = {"cache": cache} if named else {}
            args = () if named else (cache,)
            with torch.no_grad():
                parts.append(model(piece, *args, weights=table, **more))
        close(torch.cat(parts, dim=1), whole)


# --- recording ----------------------------------------------------------------------------------------------


def test_alpha_of_the_last_recorded_call() -> None:
    base, ids = own_model(), tokens(2, 5)
    skills = some_skills(base, "all", "experts")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    composition = model.composition
    with pytest.raises(SkillError, match="no call was recorded"):
        composition.alpha()
    with composition.recording() as same:
        assert same is composition
        model(ids)
    assert composition.alpha().shape == (10, 2)
    close(composition.alpha(), torch.tensor([[0.7, -0.3]]).expand(10, 2))
    table = torch.tensor([[0.2, 0.0], [0.0, 1.0]])
    with composition.recording():
        model(ids)
        model(ids, weights=table)
    close(composition.alpha(), table.repeat_interleave(5, 0))
    # What is not recorded leaves the record; zero is recorded as zero.
    model(ids)
    close(composition.alpha(), table.repeat_interleave(5, 0))
    with composition.recording():
        model(ids, skills=[None, None])
    assert torch.equal(composition.alpha(), torch.zeros(10, 2))
    with composition.recording():
        pass
    with pytest.raises(SkillError, match="no call was recorded"):
        composition.alpha()
    each = torch.randn(2, 5, 2)
    with composition.recording():
        model(ids, weights=each)
    close(composition.alpha(), each.flatten(0, 1))


def test_alpha_of_routers() -> None:
    base, ids = own_model(), tokens(2, 5)
    skills = some_skills(base, "all", "experts")
    router = TopK(32, 2, 1)
    nn.init.normal_(router.weight)
    model: Any = compose(base, skills, router=router, reads="token")
    with model.composition.recording():
        model(ids)
    found = model.composition.alpha()
    close(found, router(base.embedding(ids)).weights())
    assert not found.requires_grad


def test_alpha_of_a_router_per_layer_is_the_mean_over_the_layers_that_have_the_skill() -> None:
    base, x = net(), torch.randn(4, 6)
    skills = some_skills(base, "*", ["first", "rest.1"])
    model: Any = compose(base, skills, router=TopK.Config(k=1), reads="layer")
    with model.composition.recording():
        model(x)
    found = model.composition.alpha()
    with torch.no_grad():
        h = torch.tanh(model.first(x))
        layers = [model.first.mixture.router(x).weights(), model.rest[1].mixture.router(h).weights()]
    both = torch.stack(layers)
    close(found[:, 1], both[:, :, 1].mean(0))
    # The last layer has the first skill only, which then takes all.
    close(found[:, 0], (both[:, :, 0].sum(0) + 1) / 3)
    with model.composition.recording():
        model(x, weights=[0.7, -0.3])
    close(model.composition.alpha(), torch.tensor([[0.7, -0.3]]).expand(4, 2))


def test_alpha_beside_a_growing_skill() -> None:
    base, ids = own_model(), tokens(2, 5)
    old, new = some_skills(base, "all", "all")
    model: Any = compose(base, [old], weights=[0.7], growing=new)
    with model.composition.recording():
        model(ids)
    close(model.composition.alpha(), torch.tensor([[0.7, 1.0]]).expand(10, 2))


def test_recording_does_not_change_the_result() -> None:
    base, ids = llama(), tokens()
    model: Any = compose(base, some_skills(base, "all", "all"), router=TopK.Config(k=1), reads="token")
    expected = logits_of(model, ids)
    with model.composition.recording():
        assert torch.equal(logits_of(model, ids), expected)
    with pytest.raises(KeyError), model.composition.recording():
        raise KeyError
    assert not model.composition.is_recording


def test_a_call_s_cache_is_let_go() -> None:
    base, ids = own_model(), tokens()
    model: Any = compose(base, some_skills(base, "all"), weights=[1.0])
    cache = KeyValueCache(base.config, 3, base.embedding.weight)
    logits_of(model, ids, cache=cache)
    gone = weakref.ref(cache)
    del cache
    gc.disable()
    try:
        assert gone() is None
    finally:
        gc.enable()
