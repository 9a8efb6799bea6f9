"""Skills joined along the rank: equal to skills one by one, however they are computed, and not larger."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import close, net, random_skill, some_skills
from torch import Tensor, nn

from expertise.mixture import Mixture
from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.mixture.routes import Routes
from expertise.skills import Factors, compose, extended
from expertise.skills.joined import factors_of, join

RANKS = {"different": (3, 1, 2), "equal": (2, 2, 2)}


def joined(ranks: tuple[int, ...], trainable: bool = True) -> tuple[LowRankExperts, list[Factors]]:
    torch.manual_seed(0)
    factors = [
        Factors(A=torch.randn(r, 5).double(), B=torch.randn(4, r).double(), scaling=0.5 + r) for r in ranks
    ]
    return join(factors, trainable), factors


def routes_of(kind: str, num_tokens: int) -> tuple[Routes, Tensor]:
    """Routes over three skills whose gates are a leaf."""
    torch.manual_seed(1)
    if kind == "dense":
        gates = torch.randn(num_tokens, 3).double().requires_grad_()
        return Routes.dense(gates), gates
    gates = torch.randn(num_tokens, 2).double().requires_grad_()
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(num_tokens)])
    counts = None
    if kind == "varying":
        counts = torch.tensor([1, 2] * num_tokens)[:num_tokens]
        unused = torch.arange(2) >= counts[:, None]
        ids = ids.masked_fill(unused, -1)
    affinities = torch.rand(num_tokens, 3).double()
    return Routes(gates=gates, affinities=affinities, part_ids=ids, counts=counts), gates


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("kind", ["dense", "two of three", "varying"])
@pytest.mark.parametrize("dispatch", ["auto", "dense", "grouped", "reference"])
def test_every_way_of_computing_gives_the_sum_over_skills(
    ranks: tuple[int, ...], kind: str, dispatch: str
) -> None:
    skills, factors = joined(ranks)
    routes, gates = routes_of(kind, 7)
    x = torch.randn(7, 5).double().requires_grad_()
    layer = nn.Linear(5, 4).double()
    y = Mixture(None, skills, layer, dispatch=dispatch)(x, routes=routes)

    pairs = [(f.A.clone().requires_grad_(), f.B.clone().requires_grad_()) for f in factors]
    table, expected = routes.weights(), layer(x)
    for i, ((down, up), f) in enumerate(zip(pairs, factors, strict=True)):
        expected = expected + table[:, [i]] * f.scaling * (x @ down.T @ up.T)
    close(y, expected, 1e-12)

    weight = torch.randn_like(y)
    ours = torch.autograd.grad((y * weight).sum(), [x, gates, skills.lora_A, skills.lora_B])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, gates, *(t for pair in pairs for t in pair)])
    close(ours[0], theirs[0], 1e-12)
    close(ours[1] * routes.used(), theirs[1] * routes.used(), 1e-12)
    close(ours[2], torch.cat(theirs[2::2]), 1e-12)
    close(ours[3], torch.cat([g.T for g in theirs[3::2]]), 1e-12)


def test_the_factors_of_a_skill_are_views() -> None:
    skills, factors = joined((3, 1, 2))
    for found, put_in in zip(factors_of(skills), factors, strict=True):
        assert torch.equal(found.A, put_in.A)
        assert torch.equal(found.B, put_in.B)
        assert found.scaling == put_in.scaling
    with torch.no_grad():
        next(iter(factors_of(skills))).B.fill_(7)
    assert (skills.lora_B[:3] == 7).all()
    assert not (skills.lora_B[3:] == 7).any()


def test_a_sum_is_written_over_the_product_only_when_asked() -> None:
    skills, _ = joined((1, 2), trainable=False)
    x, y, weights = torch.randn(3, 5).double(), torch.randn(3, 4).double(), torch.ones(1, 3).double()
    before = y.clone()
    found = skills.onto(y, x, weights)
    assert torch.equal(y, before)
    assert skills.onto(y, x, weights, in_place=True).data_ptr() == y.data_ptr()
    assert torch.equal(y, found)


@pytest.mark.parametrize("make", [LowRankExperts, None], ids=["low rank", "joined"])
def test_few_parts_are_computed_for_every_token_and_many_only_where_they_were_chosen(make: Any) -> None:
    def parts(count: int) -> Any:
        if make:
            return make(count, 4, 4, 2)
        return join([Factors(A=torch.ones(2, 4), B=torch.ones(4, 2), scaling=1.0)] * count, False)

    def chosen(count: int, slots: int, counts: Tensor | None = None) -> Routes:
        ids = torch.arange(slots).repeat(6, 1)
        return Routes(
            gates=torch.ones(6, slots), affinities=torch.ones(6, count), part_ids=ids, counts=counts
        )

    assert parts(8).is_dense_for(chosen(8, 2))
    assert not parts(400).is_dense_for(chosen(400, 2))
    assert parts(400).is_dense_for(Routes.dense(torch.ones(6, 400)))
    # A table with many slots of which hardly any is used is as sparse as its tokens are.
    assert parts(400).is_dense_for(chosen(400, 300))
    assert not parts(400).is_dense_for(chosen(400, 300, torch.ones(6, dtype=torch.int64)))


def test_many_skills_of_which_few_are_chosen_are_grouped_with_the_same_result() -> None:
    """Behind the same call: 300 skills, weights of a top-k router over them."""
    from expertise.mixture import TopK

    base = net()
    skills = [random_skill(base, f"s{i}", "first", rank=1, seed=i) for i in range(300)]
    torch.manual_seed(2)
    model: Any = compose(base, skills, router=TopK(6, 300, 2))
    x = torch.randn(5, 6)
    parts, router = model.first.parts, model.first.mixture.router
    assert not parts.is_dense_for(router(x))
    with torch.no_grad():
        close(model(x), model(x, weights=router(x).weights()))


def test_a_skill_costs_a_model_its_own_size_whatever_the_ranks_of_the_others() -> None:
    base = net()
    model = compose(base, [random_skill(base, "a", rank=2), random_skill(base, "b", rank=5)])
    large = random_skill(base, "c", rank=40)
    more = extended(model, large)
    assert _held(more) - _held(model) == large.num_params()
    assert _held(model) - _held(base) == sum(
        random_skill(base, "n", rank=rank).num_params() for rank in (2, 5)
    )


def _held(model: nn.Module) -> int:
    """Numbers that a model holds; what is shared counts once."""
    return sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


def test_layers_that_are_alike_share_what_is_made_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    plain = LowRankExperts.weigh

    def weigh(self: LowRankExperts, gates: Tensor) -> Tensor:
        made.append(plain(self, gates))
        return made[-1]

    monkeypatch.setattr(LowRankExperts, "weigh", weigh)
    base = net()
    model: Any = compose(base, some_skills(base, "all", "all"))
    x = torch.randn(2, 6)
    model(x, weights=torch.randn(2, 2))
    assert len(made) == 1
    model(x, weights=torch.randn(2, 2))
    assert len(made) == 2
    with model.composition.using(weights=torch.randn(2, 2)):
        model(x)
        model(x)
    assert len(made) == 3
    some = compose(base, [random_skill(base, "a", rank=2), random_skill(base, "b", "first", rank=3)])
    some(x, weights=torch.randn(2, 2))
    assert len(made) == 5


def test_alpha_that_stands_counts_as_it_was_and_goes_along_to_another_dtype() -> None:
    base = net()
    model: Any = compose(base, some_skills(base, "all", "all"), weights=[0.7, -0.3])
    x, alpha = torch.randn(2, 6), torch.randn(2, 2)
    expected, constant = model(x, weights=alpha.clone()), model(x)
    with model.composition.using(weights=alpha):
        close(model(x), expected, 0)
        alpha.zero_()
        close(model(x), expected, 0)
    close(model(x), constant, 0)
    model.double()
    close(model(x.double()), constant.double())


def test_alpha_with_a_graph_is_made_anew_for_every_call() -> None:
    """Else the second backward pass would go through what the first one freed."""
    base = net()
    model: Any = compose(base, some_skills(base, "all", "all"))
    alpha = torch.randn(2, 2, requires_grad=True)
    with model.composition.using(weights=alpha):
        for _ in range(2):
            model(torch.randn(2, 6)).sum().backward()
    assert alpha.grad is not None


def test_a_skill_learns_after_a_look_in_inference_mode() -> None:
    """What a look made ready is there still, and the backward pass may save it."""
    base = net()
    model: Any = compose(base, some_skills(base, "all"), growing=random_skill(base, "n"))
    x = torch.randn(3, 6)
    with torch.inference_mode():
        seen = model(x)
    y = model(x)
    assert torch.equal(y.detach(), seen)
    y.sum().backward()


def test_whoever_looks_at_the_frozen_layer_sees_its_own_output() -> None:
    base = net()
    model: Any = compose(base, some_skills(base, "all"), weights=[1.0])
    seen: list[Tensor] = []
    model.first.mixture.always.register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(3, 6, requires_grad=True)
    y = model(x)
    close(seen[0], base.first(x), 0)
    # The backward pass of what was seen still has what it needs.
    (y.sum() + seen[0].square().sum()).backward()


@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6), (2, 1, 3, 6)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_rows_without_a_skill_are_the_base_to_the_bit_beside_others(
    shape: tuple[int, ...], contiguous: bool
) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 3)).eval()
    model: Any = compose(base, some_skills(base, "all", "all"))
    x = torch.randn(shape) if contiguous else torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))
    alpha = torch.randn(shape[0], 2)
    alpha[0] = 0
    assert torch.equal(model(x, weights=alpha)[0], base(x)[0])


def test_autocast() -> None:
    base = net()
    model: Any = compose(base, some_skills(base, "all", "all"))
    x, alpha = torch.randn(4, 6), torch.randn(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x, weights=alpha)
        assert y.dtype == base(x).dtype == torch.bfloat16
    close(y.float(), model(x, weights=alpha), 0.05)
