"""Skills on stacked experts, ours and those of transformers: every router, dispatch and implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import by_hand, close, logits_of, own_model, qwen_mixture, random_skill, some_skills, tokens
from torch import Tensor, nn

from expertise.mixture import Mixture, Routes, SwiGLUExperts, TopK
from expertise.mixture.dispatch import DISPATCHES
from expertise.skills import Factors, Skill, compose, merged, skills_of
from expertise.skills.adapted import Adapted
from expertise.skills.experts import AdaptedExperts, ForeignExperts

WEIGHTS = [[0.7, -0.3, 0.4], [0.0, 0.0, 0.0], [0.0, 1.0, 0.5]]
"""Of three skills, for three rows."""


def per_row(base: nn.Module, skills: list[Skill], ids: Tensor, weights: list[list[float]]) -> Tensor:
    rows = [logits_of(by_hand(base, skills, a), ids[i : i + 1]) for i, a in enumerate(weights)]
    return torch.cat(rows)


@pytest.mark.parametrize("dispatch", ["auto", *DISPATCHES])
@pytest.mark.parametrize("router", ["top_k", "top_p", "hash"])
def test_ours_with_every_router_and_dispatch(router: str, dispatch: str) -> None:
    base, ids = own_model(router, num_layers=3), tokens()
    for mixture in base.mixtures().values():
        mixture.dispatch = dispatch
    skills = some_skills(base, "experts", "gate_up", ["down", "blocks.2.*"])
    model: Any = compose(base, skills, weights=[0.7, -0.3, 0.4])
    close(logits_of(model, ids), logits_of(by_hand(base, skills, [0.7, -0.3, 0.4]), ids))
    close(logits_of(merged(model), ids), logits_of(model, ids))
    close(logits_of(model, ids, weights=WEIGHTS), per_row(base, skills, ids, WEIGHTS))
    assert torch.equal(logits_of(model, ids, weights=[0.0] * 3), logits_of(base, ids))
    assert torch.equal(logits_of(model, ids, weights=torch.zeros(3, 3)), logits_of(base, ids))
    assert torch.equal(logits_of(model, ids, weights=WEIGHTS)[1], logits_of(base, ids)[1])


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_theirs_with_every_implementation(implementation: str) -> None:
    base, ids = qwen_mixture(experts_implementation=implementation), tokens()
    assert base.config._experts_implementation == implementation
    skills = some_skills(base, "experts", "gate_up_proj", ["down_proj", "*.1.*"])
    model: Any = compose(base, skills, weights=[0.7, -0.3, 0.4])
    close(logits_of(model, ids), logits_of(by_hand(base, skills, [0.7, -0.3, 0.4]), ids))
    close(logits_of(merged(model), ids), logits_of(model, ids))
    close(logits_of(model, ids, weights=WEIGHTS), per_row(base, skills, ids, WEIGHTS))
    # Without skills at work it is the base's own implementation, to the bit.
    assert torch.equal(logits_of(model, ids, weights=[0.0] * 3), logits_of(base, ids))
    assert torch.equal(logits_of(model, ids, skills=[None] * 3), logits_of(base, ids))


def experts_by_hand(layer: Any, x: Tensor, ids: Tensor, gates: Tensor, skills: Any, alpha: Tensor) -> Tensor:
    """Token by token, expert by expert: `W_e x + sum over i of alpha_i s_i B_ie A_ie x` in both products."""
    first, second = skills

    def product(weight: Tensor, factors: list[Factors | None], e: int, a: Tensor, u: Tensor) -> Tensor:
        y = weight[e] @ u
        for i, f in enumerate(factors):
            if f is not None:
                y = y + a[i] * f.scaling * (f.B[e] @ (f.A[e] @ u))
        return y

    rows = []
    for t, u in enumerate(x):
        total = torch.zeros_like(u)
        for expert, gate in zip(ids[t].tolist(), gates[t], strict=True):
            gate_up = product(layer.gate_up, first, expert, alpha[t], u)
            half = len(gate_up) // 2
            hidden = nn.functional.silu(gate_up[:half]) * gate_up[half:]
            total = total + gate * product(layer.down, second, expert, alpha[t], hidden)
        rows.append(total)
    return torch.stack(rows)


class Layer(nn.Module):
    """One mixture of experts and nothing else."""

    def __init__(self, dim: int = 6, hidden: int = 5) -> None:
        super().__init__()
        self.mixture = Mixture(TopK(dim, 4, 2), SwiGLUExperts(4, dim, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dispatch", ["auto", *DISPATCHES])
def test_weights_per_token_and_their_gradients(dispatch: str) -> None:
    torch.manual_seed(0)
    base = Layer()
    base.mixture.dispatch = dispatch
    skills = some_skills(base, "experts", "down", "gate_up")
    model: Any = compose(base, skills[:2], growing=skills[2])
    grown = skills_of(model)
    stacks = [[skill.factors.get(f"mixture.parts.{name}") for skill in grown] for name in ("gate_up", "down")]
    x, alpha = torch.randn(7, 6, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    routes = base.mixture.router(x)  # type: ignore[misc]
    expected = experts_by_hand(base.mixture.parts, x, routes.part_ids, routes.gates, stacks, alpha)
    found = model(x, weights=alpha)
    close(found, expected)
    leaves = [x, alpha, *(p for p in model.parameters() if p.requires_grad)]
    assert len(leaves) == 4
    weights = torch.randn(7, 6)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-4
        close(a, b)


def test_gradients_in_double_precision() -> None:
    torch.manual_seed(0)
    base = Layer(dim=4, hidden=3).double()
    skills = [s.to(dtype=torch.float64) for s in some_skills(base, "experts", "experts")]
    model: Any = compose(base, skills[:1], growing=skills[1])
    leaves = [p for p in model.parameters() if p.requires_grad]
    x, alpha = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    assert torch.autograd.gradcheck(lambda x, alpha, *_: model(x, weights=alpha), (x, alpha, *leaves))


def test_a_sparse_choice_of_skills_for_every_token() -> None:
    base, ids = qwen_mixture(), tokens()
    skills = some_skills(base, "experts", "all", "experts")
    router = TopK(32, 3, 1)
    nn.init.normal_(router.weight)
    model = compose(base, skills, router=router, reads="token")
    alpha = router(base.model.embed_tokens(ids)).weights().detach().view(3, 10, 3)
    assert (alpha == 0).sum() == 60
    close(logits_of(model, ids), logits_of(compose(base, skills), ids, weights=alpha))


def test_a_skill_on_one_of_the_two_stacks() -> None:
    for base in (own_model(), qwen_mixture()):
        ids = tokens()
        for pattern in ("gate_up", "down") if hasattr(base, "blocks") else ("gate_up_proj", "down_proj"):
            skills = some_skills(
                base, [f"*experts.{pattern}" if hasattr(base, "model") else f"*parts.{pattern}"]
            )
            model = compose(base, skills, weights=[0.7])
            close(logits_of(model, ids), logits_of(by_hand(base, skills, [0.7]), ids))


def test_skills_beside_a_growing_one_on_the_same_stacks() -> None:
    base, ids = own_model(), tokens()
    old, new = some_skills(base, "experts", "experts")
    model: Any = compose(base, [old], weights=[0.7], growing=new)
    close(logits_of(model, ids), logits_of(by_hand(base, [old, new], [0.7, 1.0]), ids))
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(name.rsplit(".", 3)[-3] for name in learns) == ["first", "first", "second", "second"]


def test_what_only_fills_a_stack_up_stays_zero() -> None:
    base, x = Layer(), torch.randn(9, 6)
    model: Any = compose(base, [], growing=random_skill(base, "n", "experts", rank=3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_A") and parameter.requires_grad:
            assert parameter.shape[1] == 4
            assert not parameter[:, 3:].any()
        if name.endswith("lora_B") and parameter.requires_grad:
            assert not parameter[:, :, 3:].any()
    assert {f.rank for f in skills_of(model)[0].factors.values()} == {3}


def test_experts_that_no_token_takes_and_a_batch_without_tokens() -> None:
    torch.manual_seed(0)
    base = Layer()
    nn.init.zeros_(base.mixture.router.weight)  # type: ignore[union-attr, arg-type]
    skills = some_skills(base, "experts")
    model = compose(base, skills, weights=[0.7])
    x = torch.randn(5, 6)
    close(model(x), by_hand(base, skills, [0.7])(x))
    assert model(x[:0]).shape == (0, 6)
    assert model(x[:0], weights=torch.ones(0, 1)).shape == (0, 6)
    assert model(x[:0], skills=[]).shape == (0, 6)


def test_a_choice_of_no_expert_counts_for_nothing() -> None:
    """A top-p router speaks to transformers' experts in this way: id E with weight 0 for a slot not used."""
    # In double precision, where rows of no expert would not even be counted.
    base = qwen_mixture().double()
    skills = some_skills(base, "experts")
    layer: Any = base.model.layers[0].mlp.experts
    model: Any = compose(base, skills, weights=[0.7])
    expected = by_hand(base, skills, [0.7]).model.layers[0].mlp.experts
    x, ids = torch.randn(3, 32).double(), torch.tensor([[0, 4], [2, 1], [3, 4]])
    gates = torch.tensor([[0.9, 0.0], [0.5, 0.4], [1.0, 0.0]]).double()
    model(tokens())
    stand_in = model.model.layers[0].mlp.experts
    assert isinstance(stand_in, ForeignExperts)
    expected.config._experts_implementation = "eager"
    close(stand_in(x, ids, gates), expected(x, ids, gates))
    assert layer is not stand_in


def test_the_stand_ins_are_experts_like_the_ones_they_stand_for() -> None:
    base = own_model()
    model: Any = compose(base, some_skills(base, "experts"), weights=[1.0])
    parts = model.blocks[1].feed_forward.parts
    assert isinstance(parts, AdaptedExperts)
    assert (parts.num_parts, parts.in_features, parts.out_features) == (4, 32, 32)
    assert not any(isinstance(m, Adapted) for m in model.modules())
    x, gates = torch.randn(5, 32), torch.rand(5, 4)
    model(tokens())
    expected = sum(gates[:, e, None] * parts.one(e, x) for e in range(4))
    close(parts.dense(x, gates), expected)  # type: ignore[arg-type]
    mixture = Mixture(None, parts)
    close(mixture(x, routes=Routes.dense(gates)), expected)  # type: ignore[arg-type]
    weights = {name: p.clone() for name, p in parts.named_parameters()}
    parts.reset_parameters()
    assert all(torch.equal(p, weights[name]) for name, p in parts.named_parameters())


def test_half_precision_experts() -> None:
    exact, base, ids = qwen_mixture(), qwen_mixture().bfloat16(), tokens()
    skills = some_skills(exact, "experts", "experts")
    table = torch.tensor([[0.7, -0.3], [0.0, 0.0], [0.2, 1.0]])
    found = logits_of(compose(base, skills), ids, weights=table)
    assert found.dtype == torch.bfloat16
    scale = logits_of(exact, ids).abs().max()
    # A rounding may send a token to another expert, so most positions count and not the worst.
    difference = (found - logits_of(compose(exact, skills), ids, weights=table)).abs().amax(-1)
    assert difference.median() < 0.05 * scale
