"""Models of transformers behind the same view: against their own calls, and against loops over texts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from expertise.errors import RunError, SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.data import DataConfig, prepare
from expertise.lm.data.tokenizer import train_tokenizer
from expertise.lm.evaluate import domain_texts, evaluate
from expertise.lm.foreign import Foreign
from expertise.lm.generate import Sampling, stream
from expertise.lm.model import LanguageModel
from expertise.lm.open import open_model
from expertise.lm.text import continue_text

SIZES: dict[str, Any] = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": 0}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        **SIZES,
    )
    return LlamaForCausalLM(config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_positions=32, n_embd=32, n_layer=2, n_head=4, **SIZES))


def qwen_mixture() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        hidden_size=32,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=32,
        **SIZES,
    )
    return Qwen2MoeForCausalLM(config)


@pytest.fixture(params=[llama, gpt2, qwen_mixture], ids=lambda make: make.__name__)
def core(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 300, (2, 12), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_logits_are_the_models_own(core: Any, tokens: torch.Tensor) -> None:
    view = Foreign(core)
    assert isinstance(view, CausalLM)
    assert (view.context, view.vocab_size, view.mixtures()) == (32, 300, {})
    assert torch.equal(view(tokens), core(tokens).logits)


@torch.no_grad()
def test_a_cache_changes_nothing(core: Any, tokens: torch.Tensor) -> None:
    for view in (Foreign(core), Foreign(core, first=7)):
        cache = view.new_cache(2)
        pieces = [view(tokens[:, :5], cache), view(tokens[:, 5:6], cache), view(tokens[:, 6:], cache)]
        assert torch.allclose(torch.cat(pieces, 1), view(tokens), atol=1e-5)


@torch.no_grad()
def test_documents_side_by_side_do_not_see_each_other(core: Any, tokens: torch.Tensor) -> None:
    view = Foreign(core)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 7 + [-1] * 2])
    packed = view(tokens, documents=documents)
    for row, start, end in ((0, 0, 5), (0, 5, 12), (1, 0, 3), (1, 3, 10)):
        alone = view(tokens[row : row + 1, start:end])
        assert torch.allclose(packed[row, start:end], alone[0], atol=1e-5)
    assert not torch.allclose(packed[0, 5:], view(tokens)[0, 5:], atol=1e-3)


@torch.no_grad()
def test_what_a_tokenizer_puts_before_every_text_stands_there(core: Any, tokens: torch.Tensor) -> None:
    view = Foreign(core, first=7)
    rows = torch.cat([torch.full((2, 1), 7), tokens], 1)
    assert view.context == 31
    assert torch.allclose(view(tokens), core(rows).logits[:, 1:], atol=1e-6)


@torch.no_grad()
def test_a_stream_is_greedy_generation(core: Any, tokens: torch.Tensor) -> None:
    ours = [step.tokens for step in stream(Foreign(core), tokens, 6, Sampling(temperature=0.0))]
    theirs = core.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    length = next((i for i in range(6) if (theirs[:, 12 + i] == 0).any()), 6)
    assert torch.equal(torch.stack(ours, 1)[:, :length], theirs[:, 12 : 12 + length])
    long = list(stream(Foreign(core), tokens, 40, Sampling(temperature=0.0)))
    assert len(long) == 40  # past the context


def test_bits_per_byte_by_hand(core: Any, small_text: Path) -> None:
    """Each window after the id that the tokenizer puts first, which is no target itself."""
    texts = ["the red stone walks slowly", "def return self.x += 1"] * 20
    prepared = prepare(DataConfig(source=str(small_text)), train_tokenizer(texts, 300))
    windows = domain_texts(prepared, "validation", 300, 16)
    for first in (None, 7):
        found = evaluate(Foreign(core, prepared.tokenizer, first=first), windows, 4)
        for text in windows:
            total = 0.0
            for row, targets in zip(text.windows.tokens, text.windows.targets, strict=True):
                ids = row if first is None else torch.cat([torch.tensor([first]), row])
                with torch.no_grad():
                    logits = core(ids[None]).logits[0, -len(row) :]
                total += float(F.cross_entropy(logits, targets, reduction="sum"))
            assert found.bits_per_byte[text.domain] == pytest.approx(
                total / math.log(2) / text.windows.num_bytes, rel=1e-5
            )
        assert found.usage == {}


# On disk.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(path)
    train_tokenizer(["the red stone walks slowly by a green river"] * 9, 300).save(
        str(path / "tokenizer.json")
    )
    return path


def changed(folder: Path, target: Path, **files: str | None) -> Path:
    shutil.copytree(folder, target)
    for name, content in files.items():
        path = target / name.replace("_DOT_", ".")
        path.unlink() if content is None else path.write_text(content)
    return target


def test_a_folder_opens_and_continues_text(folder: Path) -> None:
    model = open_model(folder)
    assert isinstance(model, Foreign)
    assert model.first is None
    assert model.chat is None
    pieces = list(continue_text(model, "the red", max_new_tokens=5, temperature=0.0, with_prompt=True))
    assert "".join(piece.text for piece in pieces).startswith("the red")
    assert all(piece.parts == [] and piece.skills == {} for piece in pieces)


def test_a_chat_template_and_a_first_token_are_found(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    path = changed(folder, tmp_path / "chat")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    model = open_model(path)
    assert isinstance(model, Foreign)
    assert model.first == tokenizer.token_to_id("<s>")
    assert model.chat is not None
    assert model.chat.end == "<|end|>"
    listed = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    chat = open_model(path).chat
    assert chat is not None
    assert chat.template == template


def test_a_template_that_cannot_be_used_is_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(folder, tmp_path / "chat", chat_template_DOT_jinja="{{ 1 +")
    assert open_model(path).chat is None
    assert "the chat template of" in capsys.readouterr().err


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = changed(folder, tmp_path / "large")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens([f"token{number}" for number in range(300)])
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(RunError, match=r"has \d+ tokens, the model knows 300"):
        open_model(path)


def test_a_model_without_a_tokenizer_opens(folder: Path, tmp_path: Path) -> None:
    model = open_model(changed(folder, tmp_path / "bare", tokenizer_DOT_json=None))
    assert model.tokenizer is None
    with pytest.raises(RunError, match="no tokenizer"):
        next(continue_text(model, "x", max_new_tokens=1))


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"config_DOT_json": "{}"}, RunError, "cannot open .* as a causal language model"),
        ({"config_DOT_json": "{"}, RunError, "cannot open .* as a causal language model"),
        ({"config_DOT_json": None}, SkillError, "holds no model"),
        ({"model_DOT_safetensors": None}, RunError, "cannot open .* as a causal language model"),
        ({"model_DOT_safetensors": "x"}, RunError, "cannot open .* as a causal language model"),
        ({"tokenizer_config_DOT_json": "{"}, RunError, r"damaged .*tokenizer_config\.json"),
    ],
)
def test_what_is_no_model_is_refused(
    folder: Path, tmp_path: Path, files: dict[str, str | None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_model(changed(folder, tmp_path / "broken", **files))


def test_weights_in_a_pickle_are_refused(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path / "pickle", model_DOT_safetensors=None, pytorch_model_DOT_bin="x")
    with pytest.raises(RunError, match="cannot open"):
        open_model(path)


def test_a_model_without_some_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = changed(folder, tmp_path / "headless")
    tensors = load_file(path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"it has no lm_head\.weight"):
        open_model(path)


def test_a_mistyped_path_does_not_go_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/demoo", "nothing", "/a/b"):
        with pytest.raises(SkillError, match="no model at"):
            open_model(path)
    (tmp_path / "runs" / "x").mkdir()
    with pytest.raises(SkillError, match="holds no model"):
        open_model("runs/x")


def test_weights_are_read_in_float32(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    model = open_model(tmp_path / "half")
    assert next(model.core.parameters()).dtype == torch.float32


def test_our_own_model_is_its_own_view(small_recipe: Any) -> None:
    from expertise.lm.task import with_vocabulary

    model = LanguageModel(with_vocabulary(small_recipe().model, 300))
    assert isinstance(model, CausalLM)
    assert model.core is model
    assert model.around(model) is model
    assert (model.context, model.vocab_size) == (32, 300)
