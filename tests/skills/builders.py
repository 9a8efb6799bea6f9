"""Small bases and random skills for the tests of skills."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from expertise.lm.config import ModelConfig
from expertise.lm.model import LanguageModel
from expertise.runs import recipe as recipes
from expertise.skills.skill import Factors, Skill
from expertise.skills.targets import find_targets


def own_model(router: str = "top_k", seed: int = 0, **changes: object) -> LanguageModel:
    """A tiny mixture of ours with one dense layer and a shared expert."""
    torch.manual_seed(seed)
    choice = {"name": "top_k", "k": 2} if router == "top_k" else {"name": "top_p", "p": 0.6}
    settings = {
        "vocab_size": 64,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "context": 32,
        "first_dense": 1,
        "dense_hidden": 48,
        "router": choice,
        "parts": {"name": "swiglu", "num_parts": 4, "hidden": 16},
        "always": {"hidden": 16},
        **changes,
    }
    return LanguageModel(recipes.build(settings, ModelConfig)).eval()


def llama(seed: int = 0) -> nn.Module:
    """A tiny Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.0,
    )
    return LlamaForCausalLM(config).eval()


def qwen_mixture(seed: int = 0) -> nn.Module:
    """A tiny mixture of transformers, with stacked experts."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(seed)
    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    return Qwen2MoeForCausalLM(config).eval()


def gpt2(seed: int = 0) -> nn.Module:
    """A tiny GPT-2 of transformers, whose linear layers are Conv1D."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()


def random_skill(
    base: nn.Module,
    name: str,
    patterns: str | Iterable[str],
    rank: int = 4,
    scaling: float = 1.0,
    seed: int = 1,
    size: float = 0.3,
) -> Skill:
    """A skill whose effect is clearly seen."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for address, target in find_targets(base, patterns).items():
        stack: Sequence[int] = [target.num_experts] if target.num_experts else []
        down = torch.randn(*stack, rank, target.in_features, generator=generator)
        up = torch.randn(*stack, target.out_features, rank, generator=generator)
        factors[address] = Factors(
            A=down * target.in_features**-0.5,
            B=up * size * rank**-0.5,
            scaling=scaling,
            embedding=target.kind == "embedding",
        )
    return Skill(name=name, factors=factors)


def logits_of(model: nn.Module, tokens: torch.Tensor, **given: object) -> torch.Tensor:
    """Logits of ours or of theirs."""
    out = model(tokens, **given)
    return out if isinstance(out, torch.Tensor) else out.logits


def tokens(rows: int = 3, length: int = 10, seed: int = 5) -> torch.Tensor:
    """Random ids."""
    return torch.randint(64, (rows, length), generator=torch.Generator().manual_seed(seed))
