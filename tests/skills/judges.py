"""Small bases, PEFT as the judge of its own layout, and weights merged by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expertise.skills import Factors, Skill
from expertise.skills.fit import submodule


def llama() -> Any:
    """A dense causal language model of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()


def mixture() -> Any:
    """A mixture of experts of transformers 5: stacked expert weights."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    shared = {"num_key_value_heads": 2, "shared_expert_intermediate_size": 12}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=32, **sizes, **experts, **shared)).eval()


def gpt2() -> Any:
    """Conv1D layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)).eval()


def ours() -> Any:
    """Our own mixture of experts."""
    from expertise.lm import LanguageModel, ModelConfig
    from expertise.mixture import SwiGLU, SwiGLUExperts, TopK

    torch.manual_seed(4)
    config = ModelConfig(
        dim=16,
        num_layers=2,
        num_heads=2,
        context=32,
        vocab_size=32,
        router=TopK.Config(k=2),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=8),
        always=SwiGLU.Config(hidden=8),
    )
    return LanguageModel(config).eval()


class Net(nn.Module):
    """No language model: names that end alike, as in a small policy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Of the last dimension."""
        return self.body(x)  # type: ignore[no-any-return]


def logits(model: Any) -> Tensor:
    """Of a fixed input, whatever the model is."""
    from expertise.lm import LanguageModel

    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(body, LanguageModel) and model is not body:
        # PEFT's wrapper hides what our mixture asks its parts for: PEFT can merge there, and not run.
        model = copy.deepcopy(model).merge_and_unload()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if isinstance(body, Net):
            return model(torch.randn(7, 6, generator=generator))  # type: ignore[no-any-return]
        out = model(torch.randint(0, 32, (3, 9), generator=generator))
    return getattr(out, "logits", out)


def randomised(base: Any, seed: int, **config: Any) -> Any:
    """PEFT's model over a copy of the base, with factors drawn large enough to matter."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(base), LoraConfig(**config))
    draw(model, seed)
    return model


def draw(model: Any, seed: int, adapter: str = "default") -> None:
    """Factors of one adapter anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter}" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def opened(base: Any, folder: Path) -> Any:
    """The folder, opened by PEFT over a copy of the base."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def merged(base: Any, weighted: Mapping[float, Mapping[str, Factors]]) -> Any:
    """A copy of the base with `weight * delta` of each skill added to its weights, by the definition."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for weight, factors in weighted.items():
            for address, made in factors.items():
                owner, name = (
                    (address, "weight") if submodule(model, address) else address.rpartition(".")[::2]
                )
                module, delta = model.get_submodule(owner), weight * made.delta()
                if made.embedding or type(module).__name__ == "Conv1D":
                    delta = delta.T
                # A parameter of its own: an adapted embedding leaves a head that is tied to it as it was.
                setattr(module, name, nn.Parameter(getattr(module, name) + delta))
    return model


def made_up(addresses: Mapping[str, tuple[int, ...]], seed: int = 0, name: str = "skill") -> Skill:
    """A skill without a base: address → (rank, in, out) or (rank, in, out, experts)."""
    generator = torch.Generator().manual_seed(seed)

    def factors(rank: int, num_in: int, num_out: int, *experts: int) -> Factors:
        down = torch.randn(*experts, rank, num_in, generator=generator)
        return Factors(
            A=down, B=torch.randn(*experts, num_out, rank, generator=generator), scaling=0.5 + 0.25 * rank
        )

    return Skill(name=name, factors={address: factors(*sizes) for address, sizes in addresses.items()})
