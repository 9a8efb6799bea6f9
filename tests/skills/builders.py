"""Small bases, random skills, and what composition must come to, written from the definition."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expertise.lm.config import ModelConfig
from expertise.lm.model import LanguageModel
from expertise.runs import recipe as recipes
from expertise.skills import Factors, Skill, find_targets

ROUTERS: dict[str, dict[str, Any]] = {
    "top_k": {"name": "top_k", "k": 2},
    "top_p": {"name": "top_p", "p": 0.6},
    "hash": {"name": "hash"},
}


def own_model(router: str = "top_k", seed: int = 0, **changes: Any) -> LanguageModel:
    """A tiny mixture of ours with one dense layer and a shared expert."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "context": 32,
        "first_dense": 1,
        "dense_hidden": 48,
        "router": ROUTERS[router],
        "parts": {"name": "swiglu", "num_parts": 4, "hidden": 16},
        "always": {"hidden": 16},
        **changes,
    }
    return LanguageModel(recipes.build(settings, ModelConfig)).eval()


def llama(seed: int = 0, **changes: Any) -> Any:
    """A tiny Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        **changes,
    }
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def qwen_mixture(seed: int = 0, **changes: Any) -> Any:
    """A tiny mixture of transformers, with stacked experts."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        **changes,
    }
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**settings)).eval()


def gpt2(seed: int = 0) -> Any:
    """A tiny GPT-2 of transformers, whose linear layers are Conv1D and whose head is tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, **ids)
    return GPT2LMHeadModel(config).eval()


LANGUAGE_MODELS = {"ours": own_model, "llama": llama, "qwen": qwen_mixture, "gpt2": gpt2}


class Net(nn.Module):
    """No language model: vectors in, vectors out, without anything that mixes rows."""

    def __init__(self, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(width, 8)
        self.drop = nn.Dropout(dropout)
        self.rest = nn.Sequential(nn.Tanh(), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Of the last dimension."""
        return self.rest(self.drop(self.first(x)))  # type: ignore[no-any-return]


def net(seed: int = 0, **changes: Any) -> Net:
    """The same for the same seed."""
    torch.manual_seed(seed)
    return Net(**changes).eval()


def random_skill(
    base: nn.Module,
    name: str,
    patterns: str | Iterable[str] = "all",
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
        fan_in = 1 if target.kind == "embedding" else target.in_features
        down = torch.randn(*stack, rank, target.in_features, generator=generator)
        up = torch.randn(*stack, target.out_features, rank, generator=generator)
        factors[address] = Factors(
            A=down * fan_in**-0.5,
            B=up * size * rank**-0.5,
            scaling=scaling,
            embedding=target.kind == "embedding",
        )
    return Skill(name=name, factors=factors)


def some_skills(base: nn.Module, *patterns: str | Iterable[str]) -> list[Skill]:
    """Skills "a", "b", … of different ranks and scalings, one for each pattern."""
    return [
        random_skill(base, name, pattern, rank=rank, scaling=scaling, seed=seed)
        for seed, (name, pattern, rank, scaling) in enumerate(
            zip("abcd", patterns, (4, 2, 3, 1), (1.0, 1.5, 0.5, 2.0), strict=False), start=1
        )
    ]


def by_hand(base: nn.Module, skills: Sequence[Skill], weights: Sequence[float]) -> Any:
    """A copy of the base with `weight * scaling * B A` of each skill added to its weights."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for skill, weight in zip(skills, weights, strict=True):
            for address, f in skill.factors.items():
                try:
                    module, name = model.get_submodule(address), "weight"
                except AttributeError:
                    owner, _, name = address.rpartition(".")
                    module = model.get_submodule(owner)
                delta = torch.einsum("...or,...ri->...oi", f.B, f.A) * (weight * f.scaling)
                if f.embedding or type(module).__name__ == "Conv1D":
                    delta = delta.transpose(-1, -2)
                own = getattr(module, name)
                # A parameter of its own: what was tied to it stays as it was.
                setattr(module, name, nn.Parameter(own + delta.to(own.dtype)))
    return model.eval()


def logits_of(model: Any, ids: Tensor, **given: Any) -> Tensor:
    """Logits of ours or of theirs, without a graph."""
    with torch.no_grad():
        out = model(ids, **given)
    return out if isinstance(out, Tensor) else out.logits  # type: ignore[no-any-return]


def tokens(rows: int = 3, length: int = 10, seed: int = 5) -> Tensor:
    """Random ids; none of them is one of the first three, which are special."""
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def state_of(base: nn.Module) -> Mapping[str, Any]:
    """Everything of a base that composing must leave as it is."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in base.state_dict(keep_vars=False).items()},
        "buffers": {name: buffer.clone() for name, buffer in base.named_buffers()},
        "places": {name: p.data_ptr() for name, p in base.named_parameters(remove_duplicate=False)},
        "learns": {name: p.requires_grad for name, p in base.named_parameters(remove_duplicate=False)},
        "grads": {name: p.grad for name, p in base.named_parameters()},
        "modes": {name: module.training for name, module in base.named_modules()},
        "modules": {name: id(module) for name, module in base.named_modules(remove_duplicate=False)},
        "attributes": {name: sorted(vars(module)) for name, module in base.named_modules()},
        "hooks": {
            name: [list(table) for table in (module._forward_hooks, module._forward_pre_hooks)]
            for name, module in base.named_modules()
        },
    }


def same_state(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Every recorded thing is what it was, tensors to the bit."""
    for what, table in before.items():
        assert list(table) == list(after[what]), what
        for name, value in table.items():
            other = after[what][name]
            same = torch.equal(value, other) if isinstance(value, Tensor) else value == other
            assert same, (what, name)
