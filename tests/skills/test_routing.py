"""Routers over skills: what they read, sparse against dense, gradients against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import (
    by_hand,
    close,
    llama,
    logits_of,
    net,
    own_model,
    qwen_mixture,
    random_skill,
    some_skills,
    tokens,
)
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.mixture import Context, Hash, Routes, TopK, TopP
from expertise.mixture.routers.base import Router
from expertise.skills import Skill, compose, skills_of


def context_router(width: int = 5, num_skills: int = 2, squash: Any = "none", seed: int = 0) -> Context:
    torch.manual_seed(seed)
    return Context(width, num_skills, (7,), squash)


def learned(kind: str, width: int, num_skills: int, seed: int = 0) -> Router:
    """Centroids far enough apart that tokens differ in what they take."""
    router: Any = {
        "top_k": lambda: TopK(width, num_skills, 2),
        "top_k normalised": lambda: TopK(width, num_skills, 2, normalize=True, scale=1.5),
        "top_p": lambda: TopP(width, num_skills, 0.6),
        "top_p of sigmoids": lambda: TopP(width, num_skills, 0.5, max_parts=2, scores="sigmoid"),
    }[kind]()
    nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(seed))
    return router


LEARNED = ("top_k", "top_k normalised", "top_p", "top_p of sigmoids")


def explicit(base: Any, skills: list[Skill], alpha: Tensor, x: Tensor) -> Tensor:
    """`Net`, every adapted product written out: `W x + b + sum over i of alpha_i s_i B_i A_i x`."""

    def layer(address: str, x: Tensor) -> Tensor:
        y = base.get_submodule(address)(x)
        for i, skill in enumerate(skills):
            if address in skill.factors:
                f = skill.factors[address]
                y = y + alpha[..., i, None] * f.scaling * (x @ f.A.T @ f.B.T)
        return y

    h = torch.tanh(layer("first", x))
    return layer("rest.3", torch.relu(layer("rest.1", h)))


# --- a context that the caller gives ------------------------------------------------------------------------


@pytest.mark.parametrize("squash", ["none", "softmax", "sigmoid"])
def test_a_context_decides_for_every_row(squash: Any) -> None:
    base, ids, context = own_model(), tokens(), torch.randn(3, 5)
    skills = some_skills(base, "all", "experts")
    router = context_router(squash=squash)
    model: Any = compose(base, skills, router=router)
    assert model.composition.reads == "context"
    assert model.composition.routers() == {"": router}
    alpha = router(context, context).weights().detach()
    expected = logits_of(compose(base, skills), ids, weights=alpha)
    assert torch.equal(logits_of(model, ids, context=context), expected)
    # One context per token, and one for a policy's rows.
    each = torch.randn(3, 10, 5)
    alpha = router(each, each).weights().detach().view(3, 10, 2)
    assert torch.equal(
        logits_of(model, ids, context=each), logits_of(compose(base, skills), ids, weights=alpha)
    )
    small = net()
    policy = compose(small, some_skills(small, "*", "rest.1"), router=router)
    x = torch.randn(3, 6)
    close(
        policy(x, context=context),
        explicit(small, skills_of(policy), router(context, context).weights(), x),
    )


def test_a_call_may_name_the_weights_of_a_model_with_a_router() -> None:
    base, ids = llama(), tokens()
    skills = some_skills(base, "all", "all")
    expected = logits_of(by_hand(base, skills, [0.7, -0.3]), ids)
    for options in (
        {"router": context_router()},
        {"router": context_router(32), "reads": "pooled"},
        {"router": learned("top_k", 32, 2), "reads": "token"},
        {"router": TopP.Config(p=0.5), "reads": "layer"},
    ):
        model = compose(base, skills, **options)  # type: ignore[arg-type]
        close(logits_of(model, ids, weights=[0.7, -0.3]), expected)
        assert torch.equal(logits_of(model, ids, weights=[0.0, 0.0]), logits_of(base, ids))
        assert torch.equal(logits_of(model, ids, skills=[None] * 3), logits_of(base, ids))
        with pytest.raises(SkillError, match="has a router"):
            model.composition.set_weights([1.0, 0.0])  # type: ignore[union-attr]


# --- hidden states ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEARNED)
def test_sparse_choices_by_token_equal_the_dense_sum_with_the_same_alpha(kind: str) -> None:
    for base in (own_model(), qwen_mixture()):
        ids = tokens()
        skills = some_skills(base, "all", "all-linear", ["experts", "*.0.*"])
        router = learned(kind, 32, 3)
        model = compose(base, skills, router=router, reads="token")
        embedded = base.get_submodule("embedding" if hasattr(base, "embedding") else "model.embed_tokens")(
            ids
        )
        routes = router(embedded)
        alpha = routes.weights().detach()
        assert (alpha == 0).any()
        assert not routes.is_dense
        close(
            logits_of(model, ids), logits_of(compose(base, skills), ids, weights=alpha.view(3, 10, 3)), 5e-6
        )


def test_another_module_may_be_read_and_layers_before_it_have_no_skill() -> None:
    base, ids = llama(), tokens()
    skills = some_skills(base, "all", "all")
    router = context_router(32)
    model = compose(base, skills, router=router, reads="token", source="model.layers.0")
    late = [Skill(name=s.name, factors={a: f for a, f in s.factors.items() if ".1." in a}) for s in skills]
    with torch.no_grad():
        hidden = base.model(ids, output_hidden_states=True).hidden_states[1]
        alpha = router(hidden, hidden).weights().view(3, 10, 2)
    expected = logits_of(compose(base, late), ids, weights=alpha)
    close(logits_of(model, ids), expected)
    # A second call starts anew: what the first one chose is no choice for its own first layer.
    close(logits_of(model, ids), expected)


def test_the_adapted_embedding_may_itself_be_read() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, ["embedding", "all"], "embedding")
    router = context_router(32)
    model = compose(base, skills, router=router, reads="token")
    x = base.embedding(ids)
    alpha = router(x, x).weights().detach().view(3, 10, 2)
    close(logits_of(model, ids), logits_of(compose(base, skills), ids, weights=alpha))


def test_the_pooled_context_is_the_mean_so_far() -> None:
    base, ids = own_model(), tokens()
    skills, router = some_skills(base, "all", "all"), context_router(32)
    model = compose(base, skills, router=router, reads="pooled")
    x = base.embedding(ids).detach()
    means = torch.stack([x[:, : t + 1].mean(1) for t in range(10)], dim=1)
    alpha = router(means, means).weights().detach().view(3, 10, 2)
    close(logits_of(model, ids), logits_of(compose(base, skills), ids, weights=alpha))


@pytest.mark.parametrize("kind", ["context", *LEARNED])
def test_every_layer_may_have_its_own_router(kind: str) -> None:
    base, x = net(), torch.randn(7, 6)
    skills = some_skills(base, "*", ["first", "rest.1"], "*")
    if kind == "context":
        config: Any = Context.Config(context_dim=99, hidden=[4])
    elif kind.startswith("top_k"):
        config = TopK.Config(k=2, normalize="norm" in kind)
    else:
        config = TopP.Config(p=0.5, scores="sigmoid" if "sig" in kind else "softmax")
    torch.manual_seed(2)
    model: Any = compose(base, skills, router=config, reads="layer")
    routers = model.composition.routers()
    assert {address: router.num_parts for address, router in routers.items()} == {
        "first": 3,
        "rest.1": 3,
        "rest.3": 2,
    }
    assert len({id(router) for router in routers.values()}) == 3
    for router in routers.values():
        for parameter in router.parameters():
            nn.init.normal_(parameter)

    def layer(address: str, x: Tensor) -> Tensor:
        here = [skill for skill in skills if address in skill.factors]
        alpha = routers[address](x, x).weights()
        y = base.get_submodule(address)(x)
        for i, skill in enumerate(here):
            f = skill.factors[address]
            y = y + alpha[:, i, None] * f.scaling * (x @ f.A.T @ f.B.T)
        return y

    expected = layer("rest.3", torch.relu(layer("rest.1", torch.tanh(layer("first", x)))))
    close(model(x), expected)


def test_a_router_given_as_a_module_is_copied_for_every_layer() -> None:
    base = net(width=8)
    skills = some_skills(base, "*", "*")
    given = TopK(8, 2, 1)
    model: Any = compose(base, skills, router=given)
    assert model.composition.reads == "layer"
    routers = list(model.composition.routers().values())
    assert len(routers) == 3
    assert all(r is not given and torch.equal(r.weight, given.weight) for r in routers)


def test_layer_routers_of_embeddings_and_experts() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, ["embedding", "experts"], "experts")
    model: Any = compose(base, skills, router=TopP.Config(p=0.7))
    routers = model.composition.routers()
    assert set(routers) == {"embedding", "blocks.1.feed_forward.parts"}
    with torch.no_grad():
        for router in routers.values():
            router.weight.normal_()
    hidden: list[Tensor] = []
    base.blocks[1].feed_forward_norm.register_forward_hook(lambda m, a, y: hidden.append(y))
    with torch.no_grad():
        f = skills[0].factors["embedding"]
        x = base.embedding(ids)
        alpha = routers["embedding"](x).weights().view(3, 10, 1)
        looked_up = x + alpha * f.scaling * (f.A.T[ids] @ f.B.T)
        base.embedding.register_forward_hook(lambda m, a, y: looked_up)
        base(ids)
        weights = routers["blocks.1.feed_forward.parts"](hidden[-1]).weights().view(3, 10, 2)
    experts = [
        Skill(name=s.name, factors={a: f for a, f in s.factors.items() if "parts" in a}) for s in skills
    ]
    close(logits_of(model, ids), logits_of(compose(base, experts), ids, weights=weights))


# --- gradients ----------------------------------------------------------------------------------------------


def same_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(8))
    ours = torch.autograd.grad((found * weights).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs, retain_graph=True)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-4
        close(a, b)


@pytest.mark.parametrize("kind", ["context", *LEARNED])
def test_gradients_of_a_router_are_those_of_the_formula(kind: str) -> None:
    base, x = net(width=6), torch.randn(5, 6, requires_grad=True)
    skills = some_skills(base, "*", ["first", "rest.3"], "*")
    router = context_router(6, 3) if kind == "context" else learned(kind, 6, 3)
    model = compose(base, skills, router=router, reads="context")
    alpha = router(x, x).weights()
    same_gradients(model(x, context=x), explicit(base, skills, alpha, x), [x, *router.parameters()])
    assert all(p.requires_grad for p in router.parameters())


def test_gradients_of_a_growing_skill_are_those_of_the_formula() -> None:
    base, x = net(), torch.randn(5, 6, requires_grad=True)
    old, new = some_skills(base, "*", ["first", "rest.3"])
    for router in (None, context_router(6)):
        model: Any = compose(base, [old], weights=None if router else [0.7], router=router, growing=new)
        grown = skills_of(model)[1]
        alpha = torch.tensor([0.7, 1.0]) if router is None else router(x, x).weights()
        leaves = [p for p in model.parameters() if p.requires_grad]
        given = {} if router is None else {"context": x}
        same_gradients(model(x, **given), explicit(base, [old, grown], alpha, x), [x, *leaves])


def test_gradients_in_double_precision() -> None:
    base = net().double()
    skills = [skill.to(dtype=torch.float64) for skill in some_skills(base, "*", ["first", "rest.3"])]
    new = random_skill(base, "n", "*", scaling=1 / 3).to(dtype=torch.float64)
    torch.manual_seed(3)
    router = context_router(4, 3).double()
    model: Any = compose(base, skills, router=router, growing=new)
    leaves = [p for p in model.parameters() if p.requires_grad]
    assert len(leaves) == 4 + 2 * 3
    x, context = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (6, 4))

    def run(x: Tensor, context: Tensor, *parameters: Tensor) -> Tensor:
        return model(x, context=context)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x, context, *leaves))
    alpha = router(context, context).weights()
    torch.testing.assert_close(
        model(x, context=context), explicit(base, skills_of(model), alpha, x), rtol=0, atol=1e-13
    )


# --- refusals -----------------------------------------------------------------------------------------------


class Odd(Router):
    """A stranger's router, whose width nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.num_parts = 1

    def forward(self, x: Tensor, context: Any = None) -> Routes:
        return Routes.dense(torch.full((x[..., 0].numel(), 1), 0.5))


def test_any_router_will_do() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all")
    expected = logits_of(by_hand(base, skills, [0.5]), ids)
    for reads in ("token", "pooled", "layer"):
        close(logits_of(compose(base, skills, router=Odd(), reads=reads), ids), expected)  # type: ignore[arg-type]


def test_routers_that_do_not_fit_are_refused_in_one_line() -> None:
    base = own_model()
    skills = some_skills(base, "all", "all")
    for options, message in (
        ({"router": TopK(32, 3, 1), "reads": "token"}, "decides over 3 skills, there are 2"),
        ({"router": TopK(16, 2, 1), "reads": "token"}, "reads vectors of width 16, not 32"),
        ({"router": TopK(16, 2, 1)}, "reads vectors of width 16, not 32"),
        ({"router": Context(16, 2), "reads": "layer"}, "reads vectors of width 16, not 32"),
        ({"router": TopK.Config(k=1), "reads": "context"}, "give a router, not a config"),
        ({"router": Hash(2, 64)}, "hash router goes by token ids"),
        ({"router": Hash.Config()}, "hash router goes by token ids"),
        ({"router": Context(16, 2), "source": "embedding"}, "source= is for a router that reads"),
        ({"router": TopK.Config(k=1), "reads": "token", "source": "nowhere"}, "no module 'nowhere'"),
        ({"reads": "token"}, "reads= is for a router"),
        ({"source": "embedding"}, "source= is for a router"),
        ({"router": TopK.Config(k=1), "growing": random_skill(base, "n")}, "not a router per layer"),
    ):
        with pytest.raises(SkillError, match=message) as refused:
            compose(base, skills, **options)  # type: ignore[arg-type]
        assert "\n" not in refused.value.message
    with pytest.raises(SkillError, match="no embedding for the router to read"):
        compose(net(), some_skills(net(), "*"), router=TopK.Config(k=1), reads="token")


def test_what_a_router_reads_is_checked_when_it_is_read() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    model = compose(base, skills, router=context_router(5))
    with pytest.raises(SkillError, match="reads vectors of width 5, not 4"):
        model(ids, context=torch.randn(3, 4))
    with pytest.raises(SkillError, match="weights for 2 rows do not fit"):
        model(ids, context=torch.randn(2, 5))
    for given in ({}, {"context": [1.0]}):
        with pytest.raises(SkillError, match="reads a context"):
            model(ids, **given)
    wide = compose(base, skills, router=context_router(5), reads="token", source="blocks.0.attention")
    with pytest.raises(SkillError, match="reads vectors of width 5, not 32"):
        wide(ids)
    rotary = compose(base, skills, router=context_router(8), reads="token", source="rotary")
    with pytest.raises(SkillError, match=r"weights for shape \[3, 4, 10\] do not fit"):
        rotary(ids)
    head = compose(base, skills, router=context_router(32), reads="pooled", source="rotary")
    with pytest.raises(SkillError, match=r"needs \[rows, tokens, width\], not \[3, 4, 10, 8\]"):
        head(ids)


def test_a_call_that_never_runs_what_the_router_reads_is_refused() -> None:
    base = llama()
    model: Any = compose(base, some_skills(base, "all", "all"), router=TopK.Config(k=1), reads="token")
    embedded = base.model.embed_tokens(tokens())
    with pytest.raises(SkillError, match="did not run the module that the model's router reads"):
        model(inputs_embeds=embedded)
    # With weights of its own the call needs no router.
    close(
        logits_of(model, tokens(), weights=[1.0, 0.0]),
        model(inputs_embeds=embedded, weights=[1.0, 0.0]).logits,
    )
