"""What can be adapted, how it is named, and what is said of the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import gpt2, llama, net, own_model, qwen_mixture, random_skill
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills import Factors, Skill, compose, find_targets
from expertise.skills.targets import all_targets, read_elsewhere


def names(base: nn.Module, *patterns: str) -> list[str]:
    return list(find_targets(base, patterns))


def refusal(base: nn.Module, pattern: str) -> tuple[str, str]:
    with pytest.raises(SkillError) as refused:
        find_targets(base, pattern)
    assert "\n" not in refused.value.message
    return refused.value.message, refused.value.hints[0]


def test_every_kind_has_an_address_and_sizes() -> None:
    found = all_targets(own_model())
    assert {a: (t.kind, t.num_experts, t.in_features, t.out_features) for a, t in found.items()} == {
        "embedding": ("embedding", None, 64, 32),
        "blocks.0.attention.qkv": ("linear", None, 32, 96),
        "blocks.0.attention.output": ("linear", None, 32, 32),
        "blocks.0.feed_forward.gate_up": ("linear", None, 32, 96),
        "blocks.0.feed_forward.down": ("linear", None, 48, 32),
        "blocks.1.attention.qkv": ("linear", None, 32, 96),
        "blocks.1.attention.output": ("linear", None, 32, 32),
        "blocks.1.feed_forward.parts.gate_up": ("experts", 4, 32, 32),
        "blocks.1.feed_forward.parts.down": ("experts", 4, 16, 32),
        "blocks.1.feed_forward.always.gate_up": ("linear", None, 32, 32),
        "blocks.1.feed_forward.always.down": ("linear", None, 16, 32),
    }
    assert {t.kind for t in all_targets(gpt2()).values()} == {"conv1d", "embedding", "linear"}
    conv = all_targets(gpt2())["transformer.h.0.attn.c_attn"]
    assert (conv.kind, conv.in_features, conv.out_features) == ("conv1d", 32, 96)


def test_words_for_many_and_ends_of_names() -> None:
    base = qwen_mixture()
    experts = [f"model.layers.{i}.mlp.experts.{s}_proj" for i in (0, 1) for s in ("gate_up", "down")]
    assert names(base, "experts") == experts
    linear = names(base, "all-linear")
    assert "lm_head" not in linear
    assert "model.embed_tokens" not in linear
    assert "model.layers.0.mlp.shared_expert.gate_proj" in linear
    assert sorted(names(base, "all")) == sorted([*linear, *experts])
    assert names(base, "lm_head") == ["lm_head"]
    assert names(base, "q_proj") == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert names(base, "layers.1.self_attn.?_proj") == [f"model.layers.1.self_attn.{s}_proj" for s in "qkvo"]
    assert names(base, "model.layers.0.*.q_proj") == ["model.layers.0.self_attn.q_proj"]
    # However they are asked for, they come in the base's order, once.
    assert names(base, "down_proj", "experts") == names(base, "experts", "down_proj")
    assert len(set(names(base, "all", "q_proj"))) == len(names(base, "all"))


def test_a_name_that_means_nothing_is_answered_with_near_ones() -> None:
    message, hint = refusal(llama(), "q_porj")
    assert message == "no weight of the base that can be adapted is called 'q_porj'"
    assert "q_proj" in hint
    assert refusal(llama(), "model.layers.0.self_attn.q_prj")[1].startswith(
        "near names: model.layers.0.self_attn.q_proj"
    )
    assert "known are: " in refusal(net(), "zzzzz")[1]
    assert refusal(llama(), "experts")[0].endswith("'experts'")
    with pytest.raises(SkillError, match="at least one weight"):
        find_targets(net(), [])


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Embedding(3, 2)])
def test_a_base_that_is_a_layer_itself_has_no_name_for_it(layer: nn.Module) -> None:
    assert not all_targets(layer)
    hint = refusal(layer, "all")[1]
    assert (
        hint == f"the base is itself a {type(layer).__name__}: put it into a module, as nn.Sequential(layer)"
    )
    factors = {"": Factors(A=torch.ones(1, 3), B=torch.ones(2, 1), scaling=1.0)}
    with pytest.raises(SkillError) as refused:
        compose(layer, [Skill(name="a", factors=factors)])
    assert refused.value.hints == (hint,)


def test_layers_whose_weights_are_read_without_calling_them_are_refused_with_the_reason() -> None:
    for base, name, reason in (
        (nn.Sequential(nn.MultiheadAttention(8, 2)), "0.out_proj", "belongs to a MultiheadAttention"),
        (
            nn.Sequential(nn.TransformerEncoderLayer(8, 2)),
            "0.linear1",
            "belongs to a TransformerEncoderLayer",
        ),
        (own_model(), "head", "is read as a plain matrix, never called"),
        (nn.ModuleDict({"lm": own_model()}), "lm.head", "is read as a plain matrix, never called"),
    ):
        assert name not in all_targets(base)
        assert f"{name} {reason}" in refusal(base, name)[1]
        # A skill that was made elsewhere gets the same answer.
        skill = Skill(name="a", factors={name: Factors(A=torch.ones(1, 8), B=torch.ones(8, 1), scaling=1.0)})
        with pytest.raises(SkillError, match=f"'a' adapts {name}, where the base has nothing") as refused:
            compose(base, [skill])
        assert reason in refused.value.hints[0]


def test_an_encoder_layer_s_fast_path_would_pass_a_skill_by() -> None:
    """Why these are refused: in evaluation torch reads `linear1.weight` and never calls `linear1`."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    calls: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        calls.append(x)
        return nn.Linear.forward(layer.linear1, x)

    layer.linear1.forward = spy  # type: ignore[method-assign]
    layer(torch.randn(1, 3, 8))
    assert len(calls) == 1
    with torch.inference_mode():
        layer(torch.randn(1, 3, 8))
    assert len(calls) == 1


class Positions(nn.Embedding):
    """As BART's: ids are no ids but lengths, moved by 2."""

    def forward(self, input: Tensor, start: int = 0) -> Tensor:  # noqa: A002
        return super().forward(torch.arange(input.shape[1]) + start + 2)


class Scaled(nn.Embedding):
    """As Gemma's."""

    embed_scale = 2.0

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * self.embed_scale


def test_embeddings_that_do_more_than_look_up_are_refused() -> None:
    base = nn.ModuleDict({"positions": Positions(9, 4), "scaled": Scaled(9, 4), "plain": nn.Embedding(9, 4)})
    assert list(all_targets(base)) == ["scaled", "plain"]
    assert (
        "positions is a Positions, which does more than to look its input up" in refusal(base, "positions")[1]
    )


class Experts(nn.Module):
    """Stacks as transformers has them, with its flags."""

    def __init__(self, **flags: Any) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.zeros(4, 16, 8))
        self.down_proj = nn.Parameter(torch.zeros(4, 8, 8))
        for name, value in flags.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, "they do not say how they compute"),
        ({"is_transposed": True}, "their weights are transposed"),
        ({"is_transposed": False, "has_bias": True}, "they have biases"),
        ({"is_transposed": False, "has_post_expert_norm": True}, "they are normed before they are added"),
        ({"is_transposed": False, "_is_expert_parallel": True}, "they are spread over ranks"),
        ({"is_transposed": False, "has_gate": False}, "they have no gate"),
    ],
)
def test_experts_that_compute_otherwise_are_refused_with_the_reason(flags: Any, reason: str) -> None:
    base = nn.ModuleDict({"experts": Experts(**flags)})
    assert not all_targets(base)
    for name in ("experts.gate_up_proj", "experts"):
        assert refusal(base, name)[1] == f"experts holds experts that cannot be adapted: {reason}"


def test_gpt_oss_and_llama_4_are_refused_and_mixtral_is_not() -> None:
    from transformers import (
        GptOssConfig,
        GptOssForCausalLM,
        Llama4ForCausalLM,
        Llama4TextConfig,
        MixtralConfig,
        MixtralForCausalLM,
    )

    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    oss = GptOssForCausalLM(GptOssConfig(**sizes))
    assert "their weights are transposed" in refusal(oss, "model.layers.0.mlp.experts.gate_up_proj")[1]
    llama4 = Llama4ForCausalLM(Llama4TextConfig(**sizes, intermediate_size_mlp=16))
    address = next(n for n, p in llama4.named_parameters() if p.ndim == 3)
    assert "they do not say how they compute" in refusal(llama4, address)[1]
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes))
    assert len(names(mixtral, "experts")) == 2


def test_shapes_that_do_not_fit_are_named_with_both() -> None:
    base = own_model()
    for address, factors, message in (
        (
            "blocks.0.attention.qkv",
            Factors(A=torch.ones(2, 32), B=torch.ones(95, 2), scaling=1.0),
            r"'a' does not fit the base at blocks\.0\.attention\.qkv: 32 → 95 against 32 → 96",
        ),
        (
            "blocks.1.feed_forward.parts.down",
            Factors(A=torch.ones(3, 2, 16), B=torch.ones(3, 32, 2), scaling=1.0),
            r"down: 3 experts of 16 → 32 against 4 experts of 16 → 32",
        ),
        (
            "embedding",
            Factors(A=torch.ones(2, 64), B=torch.ones(32, 2), scaling=1.0),
            r"embedding: 64 → 32 against embedding 64 → 32",
        ),
    ):
        with pytest.raises(SkillError, match=message):
            compose(base, [Skill(name="a", factors={address: factors})])


def test_a_target_counts_the_numbers_of_a_skill() -> None:
    base = own_model()
    skill = random_skill(base, "a", ["all", "embedding"], rank=3)
    counted = sum(target.num_params(3) for target in find_targets(base, ["all", "embedding"]).values())
    assert counted == skill.num_params()


def test_layers_whose_weight_is_another_one_s_are_known() -> None:
    assert read_elsewhere(own_model(tied=True)) == {"embedding"}
    assert read_elsewhere(nn.ModuleDict({"lm": own_model(tied=True)})) == {"lm.embedding"}
    assert not read_elsewhere(own_model())
