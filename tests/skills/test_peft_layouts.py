"""Adapters in the layouts of older releases, of single experts, and with copies of the base's weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judges
import pytest
import torch
from safetensors.torch import load_file, save_file

from expertise.errors import SkillError
from expertise.skills import Library, Skill
from expertise.skills.fit import require_copies, require_fit
from expertise.skills.peft import PREFIX, Adapter, read
from expertise.skills.peft_config import CONFIG, WEIGHTS

Make = Callable[..., tuple[Path, Any]]

pytestmark = pytest.mark.filterwarnings("ignore")

STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def mixtral(width: int = 8) -> Any:
    """Experts whose names transformers 5 changed; width 8 makes the first stack square, 16 the second."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(6)
    sizes = {"hidden_size": 16, "intermediate_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=4, **sizes)
    ).eval()


def content(folder: Path, base: Any = None) -> Adapter:
    return read((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes(), "x", base)


def configure(folder: Path, **changes: Any) -> None:
    """Fields of a configuration changed, or left out where the new value is `...`."""
    values = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def swapped(folder: Path, base: Any, version: Any) -> Any:
    """Make of a folder what PEFT before 0.19.1 would have saved, and return the base with it merged.

    There the first dimension of a stack `[E, d1, d2]` was its input: A is `[E * r, d1]`, B `[d2, r * E]`, and
    the change of the weight is `einsum("o r e, e r i -> e i o", B, A)`.
    """
    import copy

    rank = json.loads((folder / CONFIG).read_text())["r"]
    scaling = json.loads((folder / CONFIG).read_text())["lora_alpha"] / rank
    generator = torch.Generator().manual_seed(0)
    tensors, model = {}, copy.deepcopy(base)
    for layer, block in enumerate(model.model.layers):
        for name, inner in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
            weight = getattr(block.mlp.experts, name)
            num_experts, first, second = weight.shape
            down = torch.randn(num_experts * rank, first, generator=generator) * 0.3
            up = torch.randn(second, rank * num_experts, generator=generator) * 0.3
            key = f"{PREFIX}model.layers.{layer}.mlp.experts{inner}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            by_expert = down.view(num_experts, rank, first), up.view(second, rank, num_experts)
            with torch.no_grad():
                weight += scaling * torch.einsum("ore,eri->eio", by_expert[1], by_expert[0])
    save_file(tensors, folder / WEIGHTS)
    configure(folder, peft_version=version)
    return model


@pytest.mark.parametrize("version", ["0.17.1", "0.18.0", "0.18.1", "0.19.0", "0.18.2.dev0@abc"])
@pytest.mark.parametrize("width", [8, 16, 24])
def test_stacks_of_releases_that_exchanged_input_and_output(
    peft_adapter: Make, tmp_path: Path, version: str, width: int
) -> None:
    base = mixtral(width)
    folder, _ = peft_adapter(base, r=3, lora_alpha=6, target_modules=[], target_parameters=STACKS)
    wanted = judges.logits(swapped(folder, base, version))
    adapter = content(folder, base)
    require_fit(adapter.factors, base, "it")
    found = judges.logits(judges.merged(base, {1.0: adapter.factors}))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert (wanted - judges.logits(base)).abs().max() > 0.01
    assert set(content(folder).factors) == set(adapter.factors)

    # What goes into a library, and out of it again, has the present layout: PEFT itself computes the same.
    library = Library(tmp_path / "library")
    library.import_peft(folder, name="old", base=base)
    opened = judges.opened(base, library.export_peft("old", tmp_path / "out"))
    torch.testing.assert_close(judges.logits(opened), wanted, rtol=0, atol=2e-5)
    again = library.load("old", base)
    torch.testing.assert_close(
        judges.logits(judges.merged(base, {1.0: again.factors})), wanted, rtol=0, atol=2e-5
    )
    assert library.verify().ok


@pytest.mark.parametrize("version", ["0.19.1", "0.20.0", "0.21.2", "1.0", "0.19.1.post1"])
def test_stacks_of_later_releases_are_read_as_they_are(peft_adapter: Make, version: str) -> None:
    base = mixtral()
    folder, model = peft_adapter(base, r=3, target_modules=[], target_parameters=STACKS)
    configure(folder, peft_version=version)
    adapter = content(folder, base)
    torch.testing.assert_close(
        judges.logits(judges.merged(base, {1.0: adapter.factors})),
        judges.logits(model.eval()),
        rtol=0,
        atol=2e-5,
    )
    assert not adapter.is_older


@pytest.mark.parametrize("version", [..., None, "0.19.1.dev0@abc", "0.19.1rc1", "unknown", 19])
def test_without_a_release_the_shape_tells_or_the_adapter_is_refused(
    peft_adapter: Make, version: Any
) -> None:
    base = mixtral(24)
    folder, model = peft_adapter(base, r=2, target_modules=[], target_parameters=STACKS)
    configure(folder, peft_version=version)
    upright = judges.logits(judges.merged(base, {1.0: content(folder, base).factors}))
    torch.testing.assert_close(upright, judges.logits(model.eval()), rtol=0, atol=2e-5)
    with pytest.raises(SkillError, match=r"layout .* cannot be known") as caught:
        content(folder)
    assert any("name the base" in hint for hint in caught.value.hints)
    wanted = judges.logits(swapped(folder, base, version))
    exchanged = judges.logits(judges.merged(base, {1.0: content(folder, base).factors}))
    torch.testing.assert_close(exchanged, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("version", [..., "0.19.1.dev0"])
def test_square_stacks_without_a_release_are_refused(
    peft_adapter: Make, tmp_path: Path, version: Any
) -> None:
    base = mixtral(8)
    folder, _ = peft_adapter(base, r=2, target_modules=[], target_parameters=STACKS[:1])
    configure(folder, peft_version=version)
    with pytest.raises(SkillError, match=r"cannot be known") as caught:
        Library(tmp_path / "library").import_peft(folder, base=base)
    assert '"peft_version"' in caught.value.hints[0]


def test_skills_that_we_wrote_before_we_noted_a_release_keep_their_meaning(tmp_path: Path) -> None:
    base = mixtral(8)
    path = "model.layers.0.mlp.experts"
    skill = judges.made_up({f"{path}.gate_up_proj": (2, 16, 16, 4), f"{path}.down_proj": (2, 8, 16, 4)})
    library = Library(tmp_path)
    library.add(skill, name="ours", base=base)
    folder = tmp_path / "ours"
    (folder / "card.json").unlink()
    configure(folder, peft_version=...)  # as it was written then
    for back in (library.load("ours", base), library.load("ours")):
        assert all(torch.equal(back.factors[a].A, made.A) for a, made in skill.factors.items())
        assert all(torch.equal(back.factors[a].B, made.B) for a, made in skill.factors.items())


def per_expert(
    folder: Path, block: str, layers: dict[str, tuple[int, int]], *, rank: int = 2, experts: int = 4
) -> None:
    """An adapter of a model of transformers 4: a linear layer for each name → (in, out) of each expert."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(2):
        for expert in range(experts):
            for name, (num_in, num_out) in layers.items():
                key = f"{PREFIX}model.layers.{layer}.{block}.experts.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, num_in, generator=generator) * 0.3
                tensors[f"{key}.lora_B.weight"] = torch.randn(num_out, rank, generator=generator) * 0.3
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 5, "target_modules": sorted(layers)}
    (folder / CONFIG).write_text(json.dumps({**config, "peft_version": "0.17.0", "bias": "none"}))


def by_hand(folder: Path, base: Any, scaling: Callable[[str, int], float]) -> Any:
    """The base with the change of each layer's weight added where transformers 5 holds that weight."""
    import copy

    model = copy.deepcopy(base)
    tensors = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for key, down in tensors.items():
            if "lora_A" not in key:
                continue
            up, parts = tensors[key.replace("lora_A", "lora_B")], key.split(".")
            experts, number, name = model.model.layers[int(parts[4])].mlp.experts, int(parts[7]), parts[8]
            first = name not in ("w2", "down_proj")
            weight = (experts.gate_up_proj if first else experts.down_proj)[number]
            rows = slice(up.shape[0], None) if name in ("w3", "up_proj") else slice(0, up.shape[0])
            weight[rows] += scaling(f"{number}.{name}", down.shape[0]) * up @ down
    return model


MODELS: dict[str, tuple[Callable[[], Any], str, dict[str, tuple[int, int]]]] = {
    "mixtral": (mixtral, "block_sparse_moe", {"w1": (16, 8), "w3": (16, 8), "w2": (8, 16)}),
    "qwen2 moe": (
        judges.mixture,
        "mlp",
        {"gate_proj": (16, 8), "up_proj": (16, 8), "down_proj": (8, 16)},
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_layers_of_single_experts_become_stacks(tmp_path: Path, kind: str) -> None:
    make, block, layers = MODELS[kind]
    base = make()
    per_expert(tmp_path / "old", block, layers)
    wanted = judges.logits(by_hand(tmp_path / "old", base, lambda _, rank: 5 / rank))
    if kind == "mixtral":  # PEFT 0.21.2 opens the other one without its experts
        opened = judges.opened(base, tmp_path / "old")
        torch.testing.assert_close(judges.logits(opened), wanted, rtol=0, atol=2e-5)
    library = Library(tmp_path / "library")
    card = library.import_peft(tmp_path / "old", base=base)
    assert all(address.endswith(("gate_up_proj", "down_proj")) for address in card.targets)
    skill = library.load("old", base)
    found = judges.logits(judges.merged(base, {1.0: skill.factors}))
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    assert (wanted - judges.logits(base)).abs().max() > 0.01
    opened = judges.opened(base, library.export_peft("old", tmp_path / "out"))
    torch.testing.assert_close(judges.logits(opened), wanted, rtol=0, atol=2e-5)


def test_some_layers_of_some_experts_with_ranks_and_scalings_of_their_own(tmp_path: Path) -> None:
    base = mixtral()
    folder = tmp_path / "old"
    per_expert(folder, "block_sparse_moe", {"w1": (16, 8), "w3": (16, 8), "w2": (8, 16)})
    tensors = load_file(folder / WEIGHTS)
    tensors = {k: v for k, v in tensors.items() if not ("experts.1" in k or "layers.1" in k or ".3.w1" in k)}
    for key in [key for key in tensors if ".2.w3.lora_A" in key]:
        tensors[key] = torch.randn(3, 16)
        tensors[key.replace("lora_A", "lora_B")] = torch.randn(8, 3)
    save_file(tensors, folder / WEIGHTS)
    configure(folder, rank_pattern={r"experts\.2\.w3": 3}, alpha_pattern={r"experts\.0\.w1": 1})
    wanted = by_hand(folder, base, lambda layer, rank: (1 if layer == "0.w1" else 5) / rank)
    found = judges.merged(base, {1.0: content(folder, base).factors})
    torch.testing.assert_close(judges.logits(found), judges.logits(wanted), rtol=0, atol=2e-5)


def test_layers_of_single_experts_that_have_no_place_are_refused(tmp_path: Path) -> None:
    per_expert(tmp_path / "many", "block_sparse_moe", {"w1": (16, 8)}, experts=5)
    with pytest.raises(SkillError, match=r"experts\.4\.w1, but model\.layers\.0\.mlp\.experts has 4 experts"):
        content(tmp_path / "many", mixtral())
    per_expert(tmp_path / "wide", "block_sparse_moe", {"w1": (16, 9)})
    with pytest.raises(SkillError, match=r"experts\.0\.w1: 16 → 9 against 16 → 8"):
        content(tmp_path / "wide", mixtral())
    with pytest.raises(SkillError, match="where the base has nothing"):
        content(tmp_path / "wide", judges.llama())
    base = mixtral()
    for layer in base.model.layers:
        layer.mlp.experts.has_bias = True
    with pytest.raises(SkillError, match="they have biases"):
        content(tmp_path / "wide", base)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj"], ["embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_copies_of_the_bases_weights_are_taken_and_others_refused(
    peft_adapter: Make, tmp_path: Path, targets: list[str], tied: bool
) -> None:
    base = judges.llama()
    if tied:
        base.config.tie_word_embeddings = True
        base.tie_weights()
    folder, model = peft_adapter(base, r=2, target_modules=targets)
    model.save_pretrained(folder, save_embedding_layers=True)
    assert content(folder, base).copies
    library = Library(tmp_path / "library")
    library.import_peft(folder, name="it", base=base)
    skill = library.load("it", base)
    found = judges.logits(judges.merged(base, {1.0: skill.factors}))
    torch.testing.assert_close(found, judges.logits(model.eval()), rtol=0, atol=2e-5)
    assert library.verify().ok
    tensors = load_file(folder / WEIGHTS)
    for key in [key for key in tensors if "lora_" not in key]:
        save_file({**tensors, key: tensors[key] + 1}, folder / WEIGHTS)
        with pytest.raises(SkillError, match="brings a weight of its own"):
            library.import_peft(folder, name="other", base=base)


def test_copies_are_known_in_the_dtype_that_the_model_ran_with(peft_adapter: Make) -> None:
    base = judges.llama()
    folder, model = peft_adapter(base, r=2, target_modules=["lm_head"])
    model.save_pretrained(folder, save_embedding_layers=True)
    tensors = load_file(folder / WEIGHTS)
    save_file({key: tensor.bfloat16() for key, tensor in tensors.items()}, folder / WEIGHTS)
    require_copies(content(folder, base).copies, base, "it")
    (copy,) = [key for key in tensors if "lm_head" in key and "lora_" not in key]
    save_file({**tensors, copy: (tensors[copy] * 1.01).bfloat16()}, folder / WEIGHTS)
    with pytest.raises(SkillError, match="brings a weight of its own"):
        require_copies(content(folder, base).copies, base, "it")


def test_our_own_skill_on_a_head_comes_back_from_peft(tmp_path: Path) -> None:
    base = judges.llama()
    skill = judges.made_up({"lm_head": (2, 16, 32), "model.layers.0.self_attn.q_proj": (2, 16, 16)})
    library = Library(tmp_path / "library")
    library.add(Skill(name="mine", factors=skill.factors), base=base)
    visiting = judges.opened(base, library.export_peft("mine", tmp_path / "out"))
    visiting.save_pretrained(tmp_path / "back")
    assert any("base_layer.weight" in key for key in load_file(tmp_path / "back" / WEIGHTS))
    library.import_peft(tmp_path / "back", name="back", base=base)
    again = library.load("back", base)
    for address, made in skill.factors.items():
        torch.testing.assert_close(again.factors[address].delta(), made.delta(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode().encode("utf-16"),
        lambda text: text.decode().encode("utf-16-le"),
        lambda text: json.dumps({**json.loads(text), "rank_pattern": None}).encode(),
        lambda text: json.dumps({**json.loads(text), "alpha_pattern": None, "lora_dropout": None}).encode(),
        lambda text: json.dumps({**json.loads(text), "bias": None}).encode(),
        lambda text: json.dumps({**json.loads(text), "target_modules": None}).encode(),
    ],
    ids=["mark", "utf-16", "utf-16-le", "no ranks", "no alphas", "no bias", "no targets"],
)
def test_a_configuration_that_peft_cannot_read_is_mended(
    peft_adapter: Make, tmp_path: Path, spoilt: Callable[[bytes], bytes]
) -> None:
    base = judges.llama()
    folder, model = peft_adapter(base, r=2, target_modules=["q_proj", "down_proj"])
    (folder / CONFIG).write_bytes(spoilt((folder / CONFIG).read_bytes()))
    library = Library(tmp_path / "library")
    library.import_peft(folder, name="it", base=base)
    opened = judges.opened(base, library.export_peft("it", tmp_path / "out"))
    torch.testing.assert_close(judges.logits(opened), judges.logits(model.eval()), rtol=0, atol=1e-6)
    # Also one that was put into a library by hand.
    (tmp_path / "library" / "it" / "card.json").unlink()
    (tmp_path / "library" / "it" / CONFIG).write_bytes((folder / CONFIG).read_bytes())
    opened = judges.opened(base, library.export_peft("it", tmp_path / "out2"))
    torch.testing.assert_close(judges.logits(opened), judges.logits(model.eval()), rtol=0, atol=1e-6)


def test_files_that_need_no_mending_are_copied_to_the_byte(peft_adapter: Make, tmp_path: Path) -> None:
    base = judges.mixture()
    folder, _ = peft_adapter(base, r=2, target_modules=["q_proj"], target_parameters=STACKS)
    library = Library(tmp_path / "library")
    library.import_peft(folder, name="it", base=base)
    out = library.export_peft("it", tmp_path / "out")
    for name in (CONFIG, WEIGHTS):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
