"""Training mode: dropout stays off, routers are told, and layers may be computed again for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from builders import close, llama, logits_of, net, own_model, qwen_mixture, some_skills, tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from expertise.errors import SkillError
from expertise.mixture import Context, Routes, TopK, TopP
from expertise.mixture.routers.base import Router
from expertise.skills import compose


class Dropping(Router):
    """A router with dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.num_parts = 2
        self.network = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 2))

    def forward(self, x: Tensor, context: Any = None) -> Routes:
        return Routes.dense(self.network(x).flatten(0, -2))


def test_dropout_of_the_base_is_off_and_that_of_a_router_on() -> None:
    base, x = net(dropout=0.5).train(), torch.randn(5, 6)
    skills = some_skills(base, "*", "*")
    model: Any = compose(base, skills, weights=[0.7, -0.3])
    expected = model(x)
    assert model.train() is model
    assert torch.equal(model(x), expected)
    # Also when it is put into training mode as part of something else.
    whole = nn.Sequential(model).train()
    assert torch.equal(whole(x), expected)
    assert all(not m.training for m in model.modules() if m is not model.composition)
    routed: Any = compose(base, skills, router=Dropping(), reads="context")
    context = torch.randn(5, 4)
    assert torch.equal(routed(x, context=context), routed(x, context=context))
    routed.train()
    assert not torch.equal(routed(x, context=context), routed(x, context=context))
    routed.eval()
    assert torch.equal(routed(x, context=context), routed(x, context=context))
    assert base.training


def test_dropout_inside_transformers_attention_stays_off() -> None:
    base, ids = llama(attention_dropout=0.5), tokens()
    base.train()
    model: Any = compose(base, some_skills(base, "all"), weights=[1.0])
    model.train()
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert not torch.equal(base(ids).logits, base(ids).logits)


def options(kind: str) -> dict[str, Any]:
    torch.manual_seed(2)
    if kind == "context":
        return {"router": Context(5, 2, (7,))}
    if kind == "layer":
        return {"router": TopP.Config(p=0.7), "reads": "layer"}
    router: Any = TopK(32, 2, 1) if kind == "token" else Context(32, 2, (7,))
    source = "model.layers.0" if kind == "deep" else None
    return {"router": router, "reads": "pooled" if kind == "pooled" else "token", "source": source}


def gradients(model: Any, batches: list[dict[str, Any]]) -> list[Tensor]:
    """Of several calls before one backward pass: each part must be computed again as in its own call."""
    model.zero_grad()
    outputs = [model(**batch).logits for batch in batches]
    generator = torch.Generator().manual_seed(3)
    total = sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs)
    total.backward()  # type: ignore[union-attr]
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.fixture
def count_layers() -> Iterator[list[nn.Module]]:
    """Layers whose attention was computed, one entry each time."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    seen: list[nn.Module] = []
    forward = LlamaAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self)
        assert not self.training
        return forward(self, *args, **kwargs)

    LlamaAttention.forward = counted  # type: ignore[method-assign]
    yield seen
    LlamaAttention.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("order", ["then train", "after train"])
@pytest.mark.parametrize("kind", ["context", "token", "pooled", "deep", "layer", "growing"])
def test_checkpointed_layers_give_the_same_gradients(
    kind: str, order: str, count_layers: list[nn.Module]
) -> None:
    base = llama(attention_dropout=0.5)
    old, new = some_skills(base, "all", "all")
    batches = [{"input_ids": tokens(3, 6, seed)} for seed in (1, 2)]
    if kind == "growing":
        model: Any = compose(base, [old], growing=new)
        batches = [
            {**batch, "weights": w} for batch, w in zip(batches, [[0.7, 1.0], [-0.3, 2.0]], strict=True)
        ]
    else:
        model = compose(base, [old, new], **options(kind))
        if kind == "context":
            batches = [{**batch, "context": torch.randn(3, 5)} for batch in batches]
    model.train()
    expected = gradients(model, batches)
    assert len(count_layers) == 4
    count_layers.clear()
    model.eval()
    if order == "after train":
        model.train()
    model.activation_checkpointing_enable()
    if order == "then train":
        model.train()
    found = gradients(model, batches)
    assert len(count_layers) == 8
    assert any(g.abs().max() > 1e-3 for g in expected)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    # Switched off again, or not training, nothing is computed twice.
    for switch in (model.eval, lambda: (model.train(), model.activation_checkpointing_disable())):
        switch()
        count_layers.clear()
        gradients(model, batches)
        assert len(count_layers) == 4


def test_checkpointed_experts() -> None:
    base = qwen_mixture()
    skills = some_skills(base, "all", "experts")
    torch.manual_seed(2)
    model: Any = compose(base, skills, router=Context(32, 2, (7,)), reads="pooled")
    model.train()
    batches = [{"input_ids": tokens(3, 6, seed)} for seed in (1, 2)]
    expected = gradients(model, batches)
    model.activation_checkpointing_enable()
    for ours, theirs in zip(gradients(model, batches), expected, strict=True):
        close(ours, theirs)


def test_checkpoints_that_would_lose_the_router_s_gradients_are_refused() -> None:
    base = llama()
    model: Any = compose(base, some_skills(base, "all"), weights=[1.0])
    model.activation_checkpointing_enable({"use_reentrant": True})
    logits_of(model, tokens())
    model.train()
    with pytest.raises(SkillError, match="cannot be checkpointed with use_reentrant=True"):
        model(tokens())


def test_a_base_that_is_checkpointed_stays_so_and_the_composed_one_too(count_layers: list[nn.Module]) -> None:
    base = llama()
    base.activation_checkpointing_enable()
    function = base.model.layers[0]._gradient_checkpointing_func
    model: Any = compose(base, [], growing=some_skills(base, "all")[0])
    model.train()
    gradients(model, [{"input_ids": tokens()}])
    assert len(count_layers) == 4
    assert base.model.layers[0]._gradient_checkpointing_func is function
    assert not base.training


class Checkpointed(nn.Module):
    """A base that checkpoints a part of itself by its own means."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.first, x, use_reentrant=False)
        return checkpoint(self.second, torch.tanh(y), use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("router", [True, False], ids=["router", "weights"])
def test_a_base_that_checkpoints_itself(router: bool) -> None:
    """Several calls before one backward pass, others without a graph: each finds its own alpha again."""
    torch.manual_seed(0)
    base = Checkpointed()
    context_router = Context(5, 2, (7,))
    skills = some_skills(base, "*", "second")
    model: Any = compose(base, skills, **({"router": context_router} if router else {}))
    leaves: list[Tensor] = list(context_router.parameters()) if router else []
    found, expected = torch.zeros(()), torch.zeros(())
    for size in (2, 4, 2):
        x = torch.randn(size, 3, 4)
        given = torch.randn(size, 5) if router else torch.randn(size, 2, requires_grad=True)
        leaves += [] if router else [given]
        alpha = context_router(given, given).weights() if router else given
        alpha = alpha.repeat_interleave(3, 0)
        flat = x.flatten(0, 1)
        y = torch.tanh(base.first(flat) + _added(model.first, flat, alpha))
        y = base.second(y) + _added(model.second, y, alpha)
        expected = expected + (y * torch.arange(4.0)).sum()
        named = {"context": given} if router else {"weights": given}
        found = found + (model(x, **named) * torch.arange(4.0)).sum()
        with torch.no_grad():
            model(x, weights=[3.0, -2.0])
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        assert theirs.abs().max() > 1e-3
        close(ours, theirs, 1e-4)


def _added(layer: Any, x: Tensor, alpha: Tensor) -> Tensor:
    terms = [alpha[:, [skill]] * f.scaling * (x @ f.A.T @ f.B.T) for skill, f in layer.slots()]
    return torch.stack(terms).sum(0)


def test_our_model_trains_its_router_only() -> None:
    base, ids = own_model(), tokens()
    model: Any = compose(base, some_skills(base, "all", "all"), router=Context(32, 2, (7,)), reads="pooled")
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(p.grad is None for p in base.parameters())
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
