"""The decoder against an independent one, its cache, its positions, its first weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.lm.attention import KeyValueCache, Rotary
from expertise.lm.config import ModelConfig
from expertise.lm.model import LanguageModel
from expertise.mixture import LowRankExperts, SwiGLU, SwiGLUExperts, TopK, TopP
from expertise.mixture.mixture import recording

BASE: dict[str, Any] = {
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "context": 32,
    "vocab_size": 61,
    "router": TopP.Config(p=0.5, max_parts=3),
    "parts": SwiGLUExperts.Config(num_parts=5, hidden=16),
    "always": SwiGLU.Config(hidden=24),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "top-p": BASE,
    "top-k normalised": {**BASE, "router": TopK.Config(k=2, normalize=True, scale=1.5)},
    "dense and mixture": {**BASE, "first_dense": 1, "dense_hidden": 20, "tied": True},
    "grouped queries": {**BASE, "num_kv_heads": 2, "qkv_bias": True, "qk_norm": True, "rope_theta": 500.0},
    "dense": {k: v for k, v in BASE.items() if k not in ("router", "parts", "always")}
    | {"dense_hidden": 40, "num_kv_heads": 1},
}


def built(seed: int = 0, **fields: Any) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(ModelConfig(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms of 1 and biases of 0 would hide mistakes
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name.endswith("router.weight"):
                parameter.mul_(4)
    return model


def tokens_of(model: LanguageModel, batch: int = 2, time: int = 12, seed: int = 1) -> Tensor:
    return torch.randint(
        model.config.vocab_size, (batch, time), generator=torch.Generator().manual_seed(seed)
    )


# --- an independent forward pass, position by position, in float64 --------------------------------------


def rms(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return weight * x / ((x * x).sum() / len(x) + epsilon).sqrt()


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (gate_up @ x)[: len(gate_up) // 2], (gate_up @ x)[len(gate_up) // 2 :]
    return down @ (gate / (1 + torch.exp(-gate)) * up)


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """Element i and i + d/2 are real and imaginary part of a number that is turned by p * theta^(-2i/d)."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        z = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = z.real, z.imag
    return out


def feed_forward(w: dict[str, Tensor], prefix: str, x: Tensor, config: ModelConfig, index: int) -> Tensor:
    layer = config.layer(index)
    if layer is None:
        return swiglu(x, w[f"{prefix}.gate_up.weight"], w[f"{prefix}.down.weight"])
    scores = w[f"{prefix}.router.weight"] @ x
    probabilities = torch.exp(scores - scores.max())
    probabilities = probabilities / probabilities.sum()
    order = sorted(range(len(probabilities)), key=lambda part: -float(probabilities[part]))
    router = layer.router
    if isinstance(router, TopK.Config):
        chosen = order[: router.k]
    else:
        chosen, mass = [], 0.0
        while mass <= router.p and len(chosen) < (router.max_parts or len(order)):
            chosen.append(order[len(chosen)])
            mass += float(probabilities[chosen[-1]])
    total = sum(float(probabilities[part]) for part in chosen) if router.normalize else 1.0
    y = torch.zeros_like(x)
    for part in chosen:
        gate = probabilities[part] / total * router.scale
        y = y + gate * swiglu(x, w[f"{prefix}.parts.gate_up"][part], w[f"{prefix}.parts.down"][part])
    if layer.always.hidden:
        y = y + swiglu(x, w[f"{prefix}.always.gate_up.weight"], w[f"{prefix}.always.down.weight"])
    return y


def by_hand(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits of one sequence [T] from the equations alone."""
    c, w = model.config, {name: p.detach().double() for name, p in model.named_parameters()}
    d, kv = c.head_dim, c.kv_heads
    stream = [w["embedding.weight"][int(token)] for token in tokens]
    for index in range(c.num_layers):
        block = f"blocks.{index}"
        queries, keys, values = [], [], []
        for position, x in enumerate(stream):
            normed = rms(x, w[f"{block}.attention_norm.weight"], c.norm_epsilon)
            qkv = w[f"{block}.attention.qkv.weight"] @ normed + w.get(f"{block}.attention.qkv.bias", 0.0)
            heads = [qkv[i * d : (i + 1) * d] for i in range(c.num_heads + 2 * kv)]
            q, k = heads[: c.num_heads], heads[c.num_heads : c.num_heads + kv]
            if c.qk_norm:
                q = [rms(h, w[f"{block}.attention.query_norm.weight"], c.norm_epsilon) for h in q]
                k = [rms(h, w[f"{block}.attention.key_norm.weight"], c.norm_epsilon) for h in k]
            queries.append([turned(h, position, c.rope_theta) for h in q])
            keys.append([turned(h, position, c.rope_theta) for h in k])
            values.append(heads[c.num_heads + kv :])
        for position in range(len(stream)):
            mixed = []
            for head in range(c.num_heads):
                shared = head // (c.num_heads // kv)
                scores = torch.stack(
                    [queries[position][head] @ keys[j][shared] / d**0.5 for j in range(position + 1)]
                )
                weights = torch.exp(scores) / torch.exp(scores).sum()
                mixed.append(sum(weights[j] * values[j][shared] for j in range(position + 1)))
            stream[position] = stream[position] + w[f"{block}.attention.output.weight"] @ torch.cat(mixed)
        for position, x in enumerate(stream):
            normed = rms(x, w[f"{block}.feed_forward_norm.weight"], c.norm_epsilon)
            stream[position] = x + feed_forward(w, f"{block}.feed_forward", normed, c, index)
    head = w["embedding.weight"] if c.tied else w["head.weight"]
    return torch.stack([head @ rms(x, w["norm.weight"], c.norm_epsilon) for x in stream])


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_logits_equal_the_equations(name: str) -> None:
    model = built(**VARIANTS[name])
    tokens = tokens_of(model, time=7)
    with torch.no_grad():
        logits = model(tokens)
    for row in range(len(tokens)):
        expected = by_hand(model, tokens[row])
        assert expected.std() > 0.3, "a model that says nothing would prove nothing"
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-4, atol=1e-4)


# --- what follows from the structure ----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_no_position_sees_what_comes_after_it(name: str) -> None:
    model = built(**VARIANTS[name])
    tokens = tokens_of(model)
    with torch.no_grad():
        before = model(tokens)
        for changed in (0, 5, 11):
            other = tokens.clone()
            other[:, changed] = (other[:, changed] + 1) % model.config.vocab_size
            after = model(other)
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-5, atol=1e-5)
            assert (after[:, changed:] - before[:, changed:]).abs().amax(dim=(0, 2)).min() > 1e-4


@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 1, 4, 2], [11, 1], [1, 11]])
@pytest.mark.parametrize("name", ["top-p", "grouped queries", "dense"])
def test_the_cache_changes_nothing(name: str, chunks: list[int]) -> None:
    model = built(**VARIANTS[name])
    tokens = tokens_of(model)
    cache = KeyValueCache(model.config, 2, model.embedding.weight)
    with torch.no_grad():
        pieces = [model(chunk, cache) for chunk in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), rtol=1e-5, atol=1e-5)
    assert cache.length == 12


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    model = built(**BASE)
    with torch.no_grad():
        model(tokens_of(model, time=32))
        with pytest.raises(RecipeError, match="33 tokens do not fit the context of 32"):
            model(tokens_of(model, time=33))
        cache = KeyValueCache(model.config, 2, model.embedding.weight)
        model(tokens_of(model, time=30), cache)
        with pytest.raises(RecipeError, match="33 tokens do not fit"):
            model(tokens_of(model, time=3), cache)


def test_grouped_queries_equal_full_heads_that_repeat() -> None:
    grouped = built(**{**BASE, "num_kv_heads": 2, "qkv_bias": True})
    full = built(**{**BASE, "qkv_bias": True})
    state = grouped.state_dict()
    for name in [name for name in state if ".qkv." in name]:
        queries, keys, values = state[name].split([32, 16, 16])
        # Key head j serves query heads 2j and 2j + 1: neighbours, not every second one.
        keys, values = (
            half.unflatten(0, (2, 8)).repeat_interleave(2, 0).flatten(0, 1) for half in (keys, values)
        )
        state[name] = torch.cat([queries, keys, values])
    full.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(full(tokens_of(full)), grouped(tokens_of(full)), rtol=1e-5, atol=1e-5)


def test_rotary_positions_are_relative() -> None:
    rotary = Rotary(8, 64, 100.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        return float((rotary(q, at) * rotary(k, other)).sum())

    assert score(3, 1) == pytest.approx(score(40, 38), abs=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    torch.testing.assert_close(rotary(q, 0), q)
    torch.testing.assert_close(rotary(q, 9).norm(), q.norm())
    by_hand = turned(q.flatten().double(), 13, 100.0)
    torch.testing.assert_close(rotary(q, 13).flatten().double(), by_hand, rtol=1e-5, atol=1e-6)
    several = torch.randn(2, 3, 5, 8)
    separate = [rotary(several[:, :, i : i + 1], 7 + i) for i in range(5)]
    torch.testing.assert_close(rotary(several, 7), torch.cat(separate, 2))


def test_bfloat16_autocast_is_close_and_trains() -> None:
    model = built(**VARIANTS["grouped queries"])
    tokens = tokens_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
        cache = KeyValueCache(model.config, 2, model.embedding.weight)
        with torch.no_grad():
            for chunk in tokens.split(4, 1):
                cached = model(chunk, cache)
    assert logits.dtype == torch.bfloat16
    assert ((logits.float() - model(tokens)).norm() / logits.float().norm()) < 0.1
    assert ((cached.float() - logits[:, -4:].float()).norm() / cached.float().norm()) < 0.1
    logits.float().square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32


def test_positions_and_caches_are_not_part_of_a_checkpoint() -> None:
    assert not any("rotary" in name for name in LanguageModel(ModelConfig(**BASE)).state_dict())


WIDE = {
    **BASE,
    "dim": 128,
    "num_layers": 3,
    "vocab_size": 300,
    "first_dense": 1,
    "dense_hidden": 96,
    "qkv_bias": True,
}


def test_the_papers_initial_weights() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**WIDE, init=0.006))
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            assert float(parameter.detach().std()) == pytest.approx(0.006, rel=0.15), name
            assert abs(float(parameter.detach().mean())) < 0.001, name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert float(parameter.detach().abs().max()) < 0.03, f"{name} is not drawn with the others"


def test_the_width_scaled_initial_weights() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**WIDE))
    residual = (2 * 3) ** -0.5
    expected = {
        "embedding.weight": 1.0,
        "head.weight": 128**-0.5,
        "blocks.1.attention.qkv.weight": 128**-0.5,
        "blocks.1.attention.output.weight": 128**-0.5 * residual,
        "blocks.0.feed_forward.gate_up.weight": 128**-0.5,
        "blocks.0.feed_forward.down.weight": 96**-0.5 * residual,
        "blocks.1.feed_forward.parts.gate_up": 128**-0.5,
        "blocks.1.feed_forward.parts.down": 16**-0.5 * residual,
        "blocks.1.feed_forward.always.gate_up.weight": 128**-0.5,
        "blocks.1.feed_forward.always.down.weight": 24**-0.5 * residual,
        "blocks.1.feed_forward.router.weight": 128**-0.5,
    }
    weights = dict(model.named_parameters())
    for name, std in expected.items():
        assert float(weights[name].detach().std()) == pytest.approx(std, rel=0.12), name
    tied = LanguageModel(ModelConfig(**WIDE, tied=True)).embedding.weight.detach()
    assert float(tied.std()) == pytest.approx(128**-0.5, rel=0.12), "it is a head as well"


@pytest.mark.parametrize("init", ["width-scaled", 0.006])
def test_low_rank_parts_start_as_nothing(init: Any) -> None:
    model = LanguageModel(
        ModelConfig(**{**BASE, "parts": LowRankExperts.Config(num_parts=5, rank=3)}, init=init)
    )
    for mixture in model.mixtures().values():
        assert isinstance(mixture.parts, LowRankExperts)
        assert not mixture.parts.lora_B.any()
        assert mixture.parts.lora_A.any()


def test_drawing_anew_is_the_seeds_doing_alone() -> None:
    first, second = built(**WIDE), built(seed=1, **WIDE)
    for model in (first, second):
        torch.manual_seed(7)
        model.reset_parameters()
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), f"{name} was not drawn anew"


def test_recording_gives_one_route_per_token_and_layer() -> None:
    model = built(**VARIANTS["dense and mixture"])
    with recording(model) as mixtures, torch.no_grad():
        model(tokens_of(model))
    assert list(model.mixtures()) == [1]
    assert [mixture.last_routes.num_tokens for mixture in mixtures if mixture.last_routes] == [24]
