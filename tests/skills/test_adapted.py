"""Kinds of layers, dtypes and places in which a skill may stand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import by_hand, close, gpt2, llama, logits_of, net, own_model, random_skill, some_skills, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.mixture import Mixture, TopK
from expertise.mixture import recording as mixtures_recording
from expertise.skills import Factors, Skill, compose, extended, find_targets, merged, skills_of
from expertise.skills.adapted import Adapted


class Scaled(nn.Embedding):
    """As Gemma's: what is looked up is scaled."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("embed_scale", torch.tensor(3.0), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * self.embed_scale


def one_layer(layer: nn.Module, rank: int = 2, num_skills: int = 2) -> tuple[nn.Module, list[Skill]]:
    base = nn.Sequential(layer).eval()
    return base, some_skills(base, *["0"] * num_skills)


LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "without bias": lambda: nn.Linear(5, 4, bias=False),
    "one wide": lambda: nn.Linear(1, 1),
    "embedding": lambda: nn.Embedding(9, 4),
    "padded embedding": lambda: nn.Embedding(9, 4, padding_idx=0),
    "scaled embedding": lambda: Scaled(9, 4),
}


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(4, 5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("make", [*LAYERS.values(), conv1d], ids=[*LAYERS, "conv1d"])
def test_every_kind_and_shape_equals_merged_weights(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    base, skills = one_layer(make())
    width, kind = (getattr(find_targets(base, "0")["0"], n) for n in ("in_features", "kind"))
    x = torch.randint(0, 9, shape) if kind == "embedding" else torch.randn(*shape, width)
    model = compose(base, skills, weights=[0.7, -0.3])
    close(model(x), by_hand(base, skills, [0.7, -0.3])(x))
    close(merged(model)(x), by_hand(base, skills, [0.7, -0.3])(x))
    assert torch.equal(model(x, weights=[0.0, 0.0]), base(x))
    if shape:
        table = torch.randn(shape[0], 2)
        rows = [by_hand(base, skills, table[i].tolist())(x[i]) for i in range(shape[0])]
        close(model(x, weights=table), torch.stack(rows) if rows else base(x))
        close(model(x, skills=["b"] * shape[0]), by_hand(base, skills[1:], [1.0])(x))
    if len(shape) == 2:
        alpha = torch.randn(*shape, 2)
        flat, flat_alpha = x.flatten(0, 1), alpha.flatten(0, 1).tolist()
        each = [by_hand(base, skills, a)(u) for a, u in zip(flat_alpha, flat, strict=True)]
        close(model(x, weights=alpha), torch.stack(each).view(*shape, -1) if each else base(x))


def test_a_padding_token_learns_nothing() -> None:
    """As in PEFT: its row of the base gets no gradient either."""
    base = nn.Sequential(nn.Embedding(9, 4, padding_idx=0)).eval()
    model: Any = compose(base, [], growing=random_skill(base, "n", "0"))
    ids = torch.tensor([[0, 1], [0, 2]])
    model(ids).square().sum().backward()
    grad = model[0].parts.lora_A.grad
    assert not grad[:, 0].any()
    assert grad[:, 1].any()


def test_conv1d_embeddings_and_a_tied_head_together() -> None:
    base, ids = gpt2(), tokens()
    assert base.lm_head.weight is base.transformer.wte.weight
    skills = some_skills(base, ["c_attn", "wte"], ["lm_head", "c_fc"], "wpe")
    model = compose(base, skills, weights=[0.7, -0.3, 0.5])
    expected = logits_of(by_hand(base, skills, [0.7, -0.3, 0.5]), ids)
    close(logits_of(model, ids), expected)
    plain: Any = merged(model)
    close(logits_of(plain, ids), expected)
    assert plain.lm_head.weight is not plain.transformer.wte.weight


def test_gemma_scales_what_a_skill_adds_to_its_embedding() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3TextConfig(vocab_size=64, num_key_value_heads=1, head_dim=16, **sizes)
    base, ids = Gemma3ForCausalLM(config).eval(), tokens()
    skills = some_skills(base, ["embed_tokens", "q_proj"])
    model = compose(base, skills, weights=[0.7])
    expected = logits_of(by_hand(base, skills, [0.7]), ids)
    close(logits_of(model, ids), expected)
    close(logits_of(merged(model), ids), expected)
    assert (expected - logits_of(base, ids)).abs().max() > 0.1


def test_skills_of_different_ranks_on_different_layers() -> None:
    base, ids = own_model(), tokens()
    patterns = ("qkv", ["blocks.1.*"], ["down", "output"], "experts")
    skills = [
        random_skill(base, name, pattern, rank=rank, scaling=scaling, seed=rank)
        for name, pattern, rank, scaling in zip(
            "abcd", patterns, (1, 7, 16, 3), (2.0, 0.25, 1.0, -1.0), strict=True
        )
    ]
    alpha = [0.7, -0.3, 1.2, 0.5]
    model = compose(base, skills, weights=alpha)
    close(logits_of(model, ids), logits_of(by_hand(base, skills, alpha), ids))
    table = torch.randn(3, 4)
    expected = [logits_of(by_hand(base, skills, a.tolist()), ids[i : i + 1]) for i, a in enumerate(table)]
    close(logits_of(model, ids, weights=table), torch.cat(expected), 5e-5)


class Shared(nn.Module):
    """A layer under two names, used twice, on other numbers of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.two = self.one
        self.rest = [self.one]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)).mean(1) + self.rest[0](x[:, 0])


def test_a_layer_under_two_names_is_adapted_under_both() -> None:
    torch.manual_seed(0)
    base, x = Shared(), torch.randn(3, 5, 4)
    assert list(find_targets(base, "*")) == ["one"]
    skills = some_skills(base, "one")
    model: Any = compose(base, skills, weights=[0.7])
    assert model.one is model.two is model.rest[0]
    expected = by_hand(base, skills, [0.7])
    expected.two = expected.one
    expected.rest = [expected.one]
    close(model(x), expected(x))
    table = torch.randn(3, 1)
    close(model(x, weights=table), torch.cat([model(x[i : i + 1], weights=table[i]) for i in range(3)]))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def test_one_of_two_tied_layers_is_adapted_alone() -> None:
    torch.manual_seed(0)
    base, x = Tied(), torch.randn(3, 4)
    skills = some_skills(base, "one")
    model = compose(base, skills, weights=[0.7])
    close(model(x), by_hand(base, skills, [0.7])(x))
    close(merged(model)(x), model(x))


class Attending(nn.Module):
    """torch's own attention beside layers that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.layer(self.attention(x, x, x)[0])


def test_a_base_with_torch_s_own_attention() -> None:
    torch.manual_seed(0)
    base, x = Attending().eval(), torch.randn(2, 3, 8)
    assert list(find_targets(base, "all")) == ["before"]
    skills = some_skills(base, "all")
    model = compose(base, skills, weights=[0.7])
    close(model(x), by_hand(base, skills, [0.7])(x))
    with torch.inference_mode():
        close(model(x), by_hand(base, skills, [0.7])(x))


def test_a_weight_that_is_made_before_every_call() -> None:
    """Pruned as by torch's own tool: a hook before the call makes the weight."""
    from torch.nn.utils import prune

    torch.manual_seed(0)
    base, x = net(), torch.randn(4, 6)
    prune.random_unstructured(base.first, "weight", 0.5)
    skills = some_skills(base, "first", "rest.1")
    model = compose(base, skills, weights=[0.7, -0.3])
    f = skills[0].factors["first"]
    h = torch.tanh(base.first(x) + 0.7 * f.scaling * (x @ f.A.T @ f.B.T))
    f = skills[1].factors["rest.1"]
    h = base.rest[1](h) - 0.3 * f.scaling * (h @ f.A.T @ f.B.T)
    close(model(x), base.rest[3](torch.relu(h)))


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_full_backward_hook"])
def test_hooks_of_an_adapted_layer_see_the_frozen_one(hook: str) -> None:
    base, x = net(), torch.randn(4, 6, requires_grad=True)
    seen: list[Any] = []
    getattr(base.first, hook)(lambda module, args, out: seen.append((module, out)))
    skills = some_skills(base, "*")
    model: Any = compose(base, skills, weights=[0.7])
    model(x).sum().backward()
    assert [module for module, _ in seen] == [model.first.mixture.always]
    if hook == "register_forward_hook":
        assert torch.equal(seen[0][1], base.first(x))


# --- dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [llama, own_model])
def test_half_precision(make: Any, dtype: torch.dtype) -> None:
    exact, ids = make(), tokens()
    base = make().to(dtype)
    skills = some_skills(exact, "all", "all-linear")
    table = torch.tensor([[0.7, -0.3], [0.0, 0.0], [0.2, 1.0]])
    model = compose(base, skills)
    found = logits_of(model, ids, weights=table)
    assert found.dtype == dtype
    expected = logits_of(compose(exact, skills), ids, weights=table)
    # Some ten roundings one after the other.
    assert (found - expected).abs().max() < 10 * torch.finfo(dtype).eps * expected.abs().max()
    assert torch.equal(found[1], logits_of(base, ids)[1])
    assert torch.equal(logits_of(model, ids, weights=[0.0, 0.0]), logits_of(base, ids))
    back = skills_of(model)[0].factors
    assert {f.A.dtype for f in back.values()} == {dtype}
    plain = merged(model, [0.7, -0.3])
    assert {p.dtype for p in plain.parameters()} == {dtype}
    # Summed before it is rounded: at most half a step from the exact sum.
    name = next(iter(skills[1].factors))
    total = exact.get_submodule(name).weight.to(dtype).float() + sum(
        a * s.to(dtype=dtype).to(dtype=torch.float32).factors[name].delta()
        for a, s in zip([0.7, -0.3], skills, strict=True)
    )
    torch.testing.assert_close(plain.get_submodule(name).weight, total.to(dtype), rtol=0, atol=0)


def test_double_precision_is_kept() -> None:
    base = own_model().double()
    skills = [s.to(dtype=torch.float64) for s in some_skills(base, "all", "all")]
    thirds = [
        Skill(name=s.name, factors={a: Factors(A=f.A, B=f.B, scaling=1 / 3) for a, f in s.factors.items()})
        for s in skills
    ]
    ids, alpha = tokens(), torch.tensor([0.1, -0.3], dtype=torch.float64)
    model = compose(base, thirds)
    expected = logits_of(by_hand(base, thirds, alpha.tolist()), ids)
    for given in (alpha, alpha.expand(3, 2), alpha.expand(3, 10, 2)):
        torch.testing.assert_close(logits_of(model, ids, weights=given), expected, rtol=0, atol=1e-13)


def test_under_autocast() -> None:
    for make in (llama, own_model):
        base, ids = make(), tokens()
        skills = some_skills(base, "all", "q_proj" if make is llama else "qkv")
        model = compose(base, skills, weights=[0.7, -0.3])
        expected = logits_of(by_hand(base, skills, [0.7, -0.3]), ids)
        with torch.autocast("cpu", torch.bfloat16):
            found, zero = logits_of(model, ids), logits_of(model, ids, weights=[0.0, 0.0])
            plain = logits_of(base, ids)
        assert torch.equal(zero, plain)
        assert found.dtype == plain.dtype
        assert (found - expected).abs().max() < 0.1


def test_moving_a_composed_model_leaves_the_base() -> None:
    base, ids = own_model(), tokens()
    skills = some_skills(base, "all", "all")
    expected = logits_of(base, ids)
    model = compose(base, skills, weights=[0.7, -0.3]).double()
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    assert logits_of(model, ids).dtype == torch.float64
    close(logits_of(model, ids).float(), logits_of(by_hand(base, skills, [0.7, -0.3]), ids))
    assert torch.equal(logits_of(base, ids), expected)


# --- inside the tree ----------------------------------------------------------------------------------------


def test_one_mixture_per_adapted_layer() -> None:
    base = net()
    model: Any = compose(base, some_skills(base, "*", "first"), weights=[1.0, 1.0])
    adapted = [m for m in model.modules() if isinstance(m, Adapted)]
    assert len(adapted) == 3
    for layer in adapted:
        assert isinstance(layer.mixture, Mixture)
        assert type(layer.mixture.always) is nn.Linear
    assert [layer.parts.num_parts for layer in adapted] == [2, 1, 1]


def test_mixtures_of_skills_record_like_any_other() -> None:
    base, x = net(), torch.randn(4, 6)
    model: Any = compose(base, some_skills(base, "*", "*"), router=TopK.Config(k=1))
    with mixtures_recording(model) as mixtures:
        model(x)
    assert [m.last_routes.num_slots for m in mixtures if m.last_routes] == [1, 1, 1]


def test_an_adapted_layer_can_be_asked_for_what_the_layer_has() -> None:
    base = net()
    model: Any = extended(compose(base, some_skills(base, "*"), weights=[1.0]), random_skill(base, "n", "*"))
    grown: Any = compose(base, some_skills(base, "*"), growing=random_skill(base, "n", "*"))
    for layer in (model.first, grown.first):
        assert layer.weight.data_ptr() == base.first.weight.data_ptr()
        assert layer.bias.shape == (8,)
        assert layer.out_features == 8
        assert not hasattr(layer, "nothing")
        assert not hasattr(layer, "_nothing")
        assert F.linear(torch.ones(6), layer.weight).shape == (8,)
