"""PEFT as the judge of composition: its adapters, its several active ones, its rows of different adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import by_hand, close, gpt2, llama, logits_of, net, own_model, qwen_mixture, tokens
from judges import draw, opened
from torch import Tensor

from expertise.skills import Library, Skill, compose, merged, skills_of

# PEFT warns of what it is about to do rightly, and transformers of names that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore")

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ALPHA = [0.7, -0.3]


def two_adapters(base: Any, folder: Path, one: dict[str, Any], two: dict[str, Any]) -> Any:
    """PEFT's model with adapters "a" and "b", both saved by PEFT itself."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(copy.deepcopy(base), LoraConfig(**one), adapter_name="a")
    model.add_adapter("b", LoraConfig(**two))
    for seed, name in enumerate("ab"):
        draw(model, seed, name)
    model.save_pretrained(folder)
    return model.eval()


def both_active(model: Any, alpha: list[float]) -> Any:
    """What PEFT has for constant weights: several adapters at once, each scaled layer by layer."""
    from peft.tuners.lora.layer import LoraLayer

    model.base_model.set_adapter(["a", "b"])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, weight in zip("ab", alpha, strict=True):
                if name in module.scaling:
                    module.set_scale(name, weight)
    return model


def imported(base: Any, adapters: Path, where: Path) -> Library:
    library = Library(where)
    for name in "ab":
        library.import_peft(adapters / name, name=name, base=base)
    return library


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
    ),
    "experts": (
        qwen_mixture,
        {"r": 4, "lora_alpha": 8, "target_modules": [], "target_parameters": EXPERTS},
        {"r": 2, "lora_alpha": 3, "target_modules": [], "target_parameters": EXPERTS},
    ),
    "experts and layers": (
        qwen_mixture,
        {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj"], "target_parameters": EXPERTS},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    ),
    "Conv1D": (
        gpt2,
        {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        {"r": 5, "target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_alpha": 4},
    ),
    "embedding": (
        llama,
        {"r": 3, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 2, "target_modules": ["embed_tokens"], "lora_alpha": 4},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_two_adapters_of_peft_composed(kind: str, tmp_path: Path) -> None:
    make, one, two = CASES[kind]
    base, ids = make(), tokens()
    judge = two_adapters(base, tmp_path / "peft", one, two)
    library = imported(base, tmp_path / "peft", tmp_path / "skills")
    skills = library.load_all(["a", "b"], base)
    model = compose(base, library, ["a", "b"], weights=ALPHA)
    found = logits_of(model, ids)
    close(found, logits_of(by_hand(base, skills, ALPHA), ids))
    close(found, logits_of(both_active(judge, ALPHA), ids))
    close(logits_of(merged(model), ids), found)
    assert (found - logits_of(base, ids)).abs().max() > 0.02
    # Each alone is PEFT's adapter, opened by PEFT.
    for name in "ab":
        alone = logits_of(opened(base, tmp_path / "peft" / name), ids)
        close(logits_of(model, ids, skills=[name] * 3), alone)


def test_what_is_exported_again_is_to_peft_what_it_was(tmp_path: Path) -> None:
    for kind in ("llama", "experts and layers"):
        make, one, two = CASES[kind]
        base, ids = make(), tokens()
        two_adapters(base, tmp_path / kind / "peft", one, two)
        library = imported(base, tmp_path / kind / "peft", tmp_path / kind / "skills")
        # Not the files as they came: the skills as they stand in a composed model.
        out = Library(tmp_path / kind / "out")
        for skill in skills_of(compose(base, library, ["a", "b"])):
            out.add(skill, base=base)
            folder = out.export_peft(skill.name, tmp_path / kind / f"exported-{skill.name}")
            before = logits_of(opened(base, tmp_path / kind / "peft" / skill.name), ids)
            close(logits_of(opened(base, folder), ids), before, 1e-6)


def test_rows_of_different_adapters(tmp_path: Path) -> None:
    make, one, two = CASES["llama"]
    two = {**two, "use_rslora": False}
    base, ids = make(), tokens(4)
    judge = two_adapters(base, tmp_path / "peft", one, two)
    library = imported(base, tmp_path / "peft", tmp_path / "skills")
    model = compose(base, library, ["a", "b"])
    expected = logits_of(judge, ids, adapter_names=["a", "__base__", "b", "a"])
    close(logits_of(model, ids, skills=["a", None, "b", "a"]), expected)


def test_peft_has_no_weights_for_rows_of_experts(tmp_path: Path) -> None:
    """What the composition is for: where PEFT refuses, it equals weights merged for each row."""
    make, one, two = CASES["experts"]
    base, ids = make(), tokens()
    judge = two_adapters(base, tmp_path / "peft", one, two)
    with pytest.raises(Exception, match="mixed adapter batches"):
        logits_of(judge, ids, adapter_names=["a", "b", "a"])
    library = imported(base, tmp_path / "peft", tmp_path / "skills")
    skills = library.load_all(["a", "b"], base)
    table = torch.tensor([[0.7, -0.3], [0.0, 0.0], [-1.0, 2.0]])
    expected = [logits_of(by_hand(base, skills, a.tolist()), ids[i : i + 1]) for i, a in enumerate(table)]
    close(logits_of(compose(base, library, ["a", "b"]), ids, weights=table), torch.cat(expected))


def test_gradients_are_those_of_peft(tmp_path: Path) -> None:
    make, one, _ = CASES["experts and layers"]
    base, ids = make(), tokens()
    judge = two_adapters(base, tmp_path / "peft", one, one)
    judge.base_model.set_adapter(["a"])
    skill: Skill = imported(base, tmp_path / "peft", tmp_path / "skills").load("a", base)
    model: Any = compose(base, [], growing=skill)
    for each in (model, judge):
        each(ids).logits.square().mean().backward()
    theirs = {name: p.grad for name, p in judge.named_parameters() if p.grad is not None}
    seen = 0
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"):
        adapted: Any = model.get_submodule(layer)
        with torch.no_grad():
            adapted.parts.lora_A.copy_(adapted.parts.lora_A.grad)
            adapted.parts.lora_B.copy_(adapted.parts.lora_B.grad)
        slot = next(adapted.slots())
        for name, own in (("A", slot.factors.A), ("B", slot.factors.B)):
            grad: Tensor = theirs[f"base_model.model.{layer}.lora_{name}.a.weight"]
            assert grad.abs().max() > 1e-6
            close(own, grad, 1e-7)
            seen += 1
    assert seen == 4


def test_any_module() -> None:
    """Without files: PEFT on a module that is no language model."""
    from peft import LoraConfig, get_peft_model

    from expertise.skills import Factors

    base, x = net(), torch.randn(4, 6)
    judge: Any = get_peft_model(
        copy.deepcopy(base), LoraConfig(r=3, lora_alpha=5, target_modules=["first", "rest.1"])
    )
    draw(judge, 0)
    factors = {}
    for address in ("first", "rest.1"):
        layer = judge.base_model.model.get_submodule(address)
        factors[address] = Factors(
            A=layer.lora_A.default.weight.detach(), B=layer.lora_B.default.weight.detach(), scaling=5 / 3
        )
    model = compose(base, [Skill(name="a", factors=factors)], weights=[1.0])
    close(model(x), judge.eval()(x))


def test_our_own_mixture_where_peft_can_only_merge(tmp_path: Path) -> None:
    base, ids = own_model(), tokens()
    config = {"r": 2, "target_modules": ["qkv"], "target_parameters": ["parts.gate_up", "parts.down"]}
    judge = two_adapters(base, tmp_path / "peft", config, {**config, "lora_alpha": 3})
    library = imported(base, tmp_path / "peft", tmp_path / "skills")
    model = compose(base, library, ["a", "b"], weights=ALPHA)
    both_active(judge, ALPHA)
    plain = judge.merge_and_unload(adapter_names=["a", "b"])
    close(logits_of(model, ids), logits_of(plain, ids))
