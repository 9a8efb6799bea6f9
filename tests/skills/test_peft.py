"""PEFT's layout, in and out, with PEFT as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judges
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from expertise.errors import SkillError
from expertise.skills import Factors
from expertise.skills.fit import require_copies, require_fit
from expertise.skills.peft import Adapter, read
from expertise.skills.peft_config import CONFIG, WEIGHTS
from expertise.skills.peft_export import write

Make = Callable[..., tuple[Path, Any]]

# PEFT warns of what it is about to do rightly, and transformers of names that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore")

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "linear": (judges.llama, {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj"]}),
    "all linear": (judges.llama, {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}),
    "rank-stabilised": (judges.llama, {"r": 4, "use_rslora": True, "target_modules": ["v_proj"]}),
    "patterns": (
        judges.llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "up_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 5, "v_proj": 3},
            "alpha_pattern": {"^model.layers.0.mlp.up_proj": 3, r".*\.1\..*q_proj": 1},
        },
    ),
    "experts": (
        judges.mixture,
        {
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
    "one stack": (judges.mixture, {"r": 2, "target_modules": [], "target_parameters": EXPERTS[1:]}),
    "stacks by their last names": (
        judges.mixture,
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
    ),
    "embedding": (judges.llama, {"r": 3, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "Conv1D": (judges.gpt2, {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Conv1D and embedding": (
        judges.gpt2,
        {"r": 2, "target_modules": ["wte", "c_fc"], "fan_in_fan_out": True},
    ),
    "our experts": (
        judges.ours,
        {"r": 2, "target_modules": ["qkv"], "target_parameters": ["parts.gate_up", "parts.down"]},
    ),
    "no language model": (
        judges.Net,
        {"r": 2, "target_modules": ["body.0", "body.2.1"], "rank_pattern": {"body.0": 4}},
    ),
}


def content(folder: Path, base: Any = None) -> Adapter:
    return read((folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes(), "x", base)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_merged_base_computes_what_peft_computes(
    peft_adapter: Make, tmp_path: Path, kind: str, with_base: bool
) -> None:
    make, config = ADAPTERS[kind]
    base = make()
    folder, model = peft_adapter(base, **config)
    adapter = content(folder, base if with_base else None)
    require_fit(adapter.factors, base, "it")
    require_copies(adapter.copies, base, "it")
    wanted = judges.logits(model.eval())
    torch.testing.assert_close(
        judges.logits(judges.merged(base, {1.0: adapter.factors})), wanted, rtol=0, atol=2e-5
    )
    assert (wanted - judges.logits(base)).abs().max() > 0.01
    assert adapter.convention == ("alpha/sqrt(r)" if config.get("use_rslora") else "alpha/r")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_is_written_is_opened_by_peft_with_equal_outputs(
    peft_adapter: Make, tmp_path: Path, kind: str
) -> None:
    make, config = ADAPTERS[kind]
    base = make()
    folder, model = peft_adapter(base, **config)
    settings, weights = write(content(folder, base).factors, base)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / CONFIG).write_text(settings)
    (tmp_path / "again" / WEIGHTS).write_bytes(weights)
    again = judges.opened(base, tmp_path / "again")
    torch.testing.assert_close(judges.logits(again), judges.logits(model.eval()), rtol=0, atol=1e-6)
    ours, theirs = (load_file(f / WEIGHTS) for f in (tmp_path / "again", folder))
    copies = {key for key in theirs if "lora_" not in key}
    assert set(ours) == set(theirs) - copies
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_scalings_and_ranks_of_every_kind_come_back() -> None:
    skill = judges.made_up(
        {
            "layers.10.q": (3, 5, 6),
            "layers.2.q": (3, 5, 6),
            "x.experts.up": (2, 5, 6, 4),
            "x.experts.down": (1, 6, 5, 4),
            "x.lonely": (2, 5, 6, 1),
        }
    )
    odd = {**skill.factors, "y": Factors(A=torch.ones(3, 2), B=torch.ones(2, 3), scaling=0.7 / 3)}
    settings, weights = write(odd)
    back = read(settings.encode(), weights, "x").factors
    assert list(back) == ["layers.2.q", "layers.10.q", "x.lonely", "x.experts.up", "x.experts.down", "y"]
    for address, made in odd.items():
        assert back[address].scaling == made.scaling
        assert torch.equal(back[address].A, made.A)
        assert torch.equal(back[address].B, made.B)


def test_order_of_stacks_is_that_of_the_base_whatever_the_skill_says(tmp_path: Path) -> None:
    base = judges.mixture()
    path = "model.layers.0.mlp.experts"
    skill = judges.made_up({f"{path}.down_proj": (2, 8, 16, 4), f"{path}.gate_up_proj": (2, 16, 16, 4)})
    settings, weights = write(skill.factors, base)
    assert json.loads(settings)["target_parameters"] == [f"{path}.gate_up_proj", f"{path}.down_proj"]
    for back in (read(settings.encode(), weights, "x", base), read(settings.encode(), weights, "x")):
        require_fit(back.factors, base, "it")
    (tmp_path / CONFIG).write_text(settings)
    (tmp_path / WEIGHTS).write_bytes(weights)
    wanted = judges.logits(judges.merged(base, {1.0: skill.factors}))
    torch.testing.assert_close(judges.logits(judges.opened(base, tmp_path)), wanted, rtol=0, atol=1e-6)


def test_every_field_of_pefts_configuration_is_decided() -> None:
    import dataclasses

    from peft import LoraConfig

    from expertise.skills import peft_config

    known = peft_config._READ | peft_config._WITHOUT_EFFECT | set(peft_config._REFUSED)
    assert {field.name for field in dataclasses.fields(LoraConfig)} == known


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("peft_type", "LOHA", "is an adapter of type LOHA; only LORA can be composed"),
        ("bias", "all", "bias is 'all', so it learns biases"),
        ("use_dora", True, "use_dora is set, and DoRA also rescales"),
        ("lora_bias", True, "lora_bias is set"),
        ("modules_to_save", ["lm_head"], "modules_to_save is set, and it replaces whole layers"),
        ("trainable_token_indices", [1], "replaces rows"),
        ("layer_replication", [[0, 1]], "repeats layers"),
        ("megatron_config", {"x": 1}, "Megatron"),
        ("alora_invocation_tokens", [1], "after certain tokens"),
        ("use_qalora", True, "averages groups"),
        ("use_bdlora", {}, "block-diagonal"),
        ("arrow_config", {}, "routes between"),
        ("kasa_config", {"beta": 1e-4}, "KaSA"),
        ("velora_config", {"num_groups": 2}, "VeLoRA"),
        ("monteclora_config", {}, "MonteCLoRA"),
        ("init_lora_weights", "pissa", "'pissa', which changes the base's weights"),
        ("init_lora_weights", "pissa_niter_4", "changes the base's weights"),
        ("init_lora_weights", "loftq", "changes the base's weights"),
        ("new_field", 3, "new_field = 3 is not known to this version"),
        ("r", 0, "a rank must be a whole number above 0, not 0"),
        ("r", True, "not True"),
        ("lora_alpha", "8", "an alpha must be a finite number, not '8'"),
        ("lora_alpha", 10**400, "too large"),
        ("rank_pattern", {"q": 1.5}, "not 1.5"),
        ("rank_pattern", {"q(": 2}, "missing \\)"),
        ("rank_pattern", [2], "adapter_config.json: "),
        ("target_parameters", "down_proj", "targets must be a list of names, not 'down_proj'"),
    ],
)
def test_what_cannot_be_composed_is_refused_with_the_reason(field: str, value: Any, reason: str) -> None:
    settings, weights = write(judges.made_up({"q": (2, 3, 4)}).factors)
    changed = json.dumps({**json.loads(settings), field: value}).encode()
    with pytest.raises(SkillError, match=reason) as caught:
        read(changed, weights, "my/adapter")
    assert caught.value.message.startswith("my/adapter")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("new_field", None),
        ("new_field", {}),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", False),
        ("lora_dropout", 0.5),
        ("fan_in_fan_out", True),
        ("exclude_modules", ["x"]),
        ("layers_to_transform", [0]),
        ("modules_to_save", []),
    ],
)
def test_what_changes_nothing_is_taken(field: str, value: Any) -> None:
    settings, weights = write(judges.made_up({"q": (2, 3, 4)}).factors)
    changed = json.dumps({**json.loads(settings), field: value}).encode()
    assert list(read(changed, weights, "x").factors) == ["q"]


Q_A, Q_B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q_B: None}, "has no factor B for q"),
        ({Q_A: None}, "has no factor A for q"),
        ({Q_A: torch.ones(3, 3)}, r"factors of q have shapes \[3, 3\] and \[4, 2\], their rank should be 2"),
        ({Q_A: torch.full((2, 3), torch.nan)}, "x is not finite at q"),
        ({Q_A: torch.ones(2, 3, 1, 1)}, "q.lora_A.weight of shape .* is no factor of a linear layer"),
        ({Q_B: torch.ones(4, 2).half()}, "must share a floating dtype"),
        ({"base_model.model.q.lora_magnitude_vector": torch.ones(4)}, "belongs to no plain LoRA"),
        (
            {"base_model.model.norm.weight": torch.ones(4)},
            "norm.weight in .* belongs to no plain LoRA",
        ),
        ({"q.lora_A.weight": torch.ones(2, 3)}, "q.lora_A.weight in .* belongs to no plain LoRA"),
        ({"base_model.model.q.lora_embedding_A": torch.ones(2, 3)}, "as a layer and as an embedding"),
        (
            {
                "base_model.model.m.base_layer.lora_A.weight": torch.ones(2, 3),
                "base_model.model.m.base_layer.lora_B.weight": torch.ones(3, 2),
            },
            "no name in target_parameters fits m",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(changes: dict[str, Any], message: str) -> None:
    settings, weights = write(judges.made_up({"q": (2, 3, 4)}).factors)
    from safetensors.torch import load

    tensors = {**load(weights), **changes}
    with pytest.raises(SkillError, match=message):
        read(settings.encode(), save({k: v for k, v in tensors.items() if v is not None}), "x")


def test_files_that_are_no_files_of_an_adapter_are_one_line() -> None:
    settings, weights = write(judges.made_up({"q": (2, 3, 4)}).factors)
    for config, tensors, message in (
        (b"{", weights, "adapter_config.json is not JSON"),
        (b"[]", weights, "is not an object"),
        (b"[" * 100_000, weights, "is not JSON"),
        (b"\xff\xfe", weights, "is not JSON"),
        (settings.encode(), weights[:-5], "adapter_model.safetensors cannot be read"),
        (settings.encode(), b"", "adapter_model.safetensors cannot be read"),
        (settings.encode(), save({}), "holds no factors"),
    ):
        with pytest.raises(SkillError, match=message):
            read(config, tensors, "x")


def test_numbers_of_stacks_must_agree() -> None:
    skill = judges.made_up({"m.up": (2, 3, 4, 2), "m.down": (2, 4, 3, 2)})
    settings, weights = write(skill.factors)
    fewer = json.dumps({**json.loads(settings), "target_parameters": ["m.up"]}).encode()
    with pytest.raises(SkillError, match="adapts 2 parameters of m, target_parameters names 1"):
        read(fewer, weights, "x")
    other = json.dumps({**json.loads(settings), "r": 3}).encode()
    with pytest.raises(SkillError, match=r"factors of m.up have shapes .*, no multiple of their rank 3"):
        read(other, weights, "x")


@pytest.mark.parametrize(
    ("address", "sizes", "message"),
    [
        ("body.3", (2, 6, 8), "skill 'it' adapts body.3, where the base has nothing that can be adapted"),
        ("body.0", (2, 8, 6), "'it' does not fit the base at body.0: 8 → 6 against 6 → 8"),
        ("body.0", (2, 6, 8, 3), "3 experts of 6 → 8 against 6 → 8"),
        ("body", (2, 6, 8), "adapts body, where the base has nothing"),
        ("0", (2, 6, 8), "adapts 0, where the base has nothing"),
        ("body.0.bias", (2, 6, 8), "adapts body.0.bias, where the base has nothing"),
    ],
)
def test_a_skill_that_does_not_fit_a_base_is_refused(address: str, sizes: Any, message: str) -> None:
    with pytest.raises(SkillError, match=message):
        require_fit(judges.made_up({address: sizes}).factors, judges.Net(), "it")


def test_near_names_and_other_kinds_are_said() -> None:
    base = judges.llama()
    with pytest.raises(SkillError) as caught:
        require_fit(judges.made_up({"model.layers.0.self_attn.qproj": (2, 16, 16)}).factors, base, "it")
    assert "model.layers.0.self_attn.q_proj" in caught.value.hints[0]
    with pytest.raises(SkillError, match=r"at model\.embed_tokens: 32 → 16 against embedding 32 → 16"):
        require_fit(judges.made_up({"model.embed_tokens": (2, 32, 16)}).factors, base, "it")


def test_an_adapter_of_another_model_is_refused_by_the_first_name(peft_adapter: Make) -> None:
    folder, _ = peft_adapter(
        judges.mixture(), r=2, target_modules=[], target_parameters=EXPERTS, rank_pattern={"down_proj": 3}
    )
    with pytest.raises(SkillError, match=r"skill 'x' adapts model\.layers\.0\.mlp\.experts, where the base"):
        content(folder, judges.llama())


def test_embeddings_that_an_adapter_brings_must_be_the_bases_own(peft_adapter: Make, tmp_path: Path) -> None:
    base = judges.llama()
    folder, _ = peft_adapter(base, r=2, target_modules=["embed_tokens"])
    assert list(content(folder).copies) == ["model.embed_tokens.weight"]
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key in tensors if "lora_" not in key)
    tensors[key][0, 0] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(SkillError, match=r"brings a weight of its own for model\.embed_tokens\.weight"):
        require_copies(content(folder, base).copies, base, "it")


def test_parameters_without_a_place_in_the_layout_are_refused() -> None:
    with pytest.raises(SkillError, match="no place for a parameter of the model itself: up"):
        write(judges.made_up({"up": (2, 3, 4, 2)}).factors)
    with pytest.raises(SkillError, match=r"no parameter model\.x\.up"):
        write(judges.made_up({"model.x.up": (2, 3, 4, 2)}).factors, judges.llama())


def test_a_parameter_stored_the_other_way_round_is_refused(peft_adapter: Make) -> None:
    base = judges.gpt2()
    folder, _ = peft_adapter(base, r=2, target_modules=[], target_parameters=["attn.c_proj.weight"])
    with pytest.raises(SkillError, match=r"c_proj\.weight is stored the other way round"):
        content(folder, base)
