"""Bits per byte by hand; what does not change them; a run on text that is no longer its own."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expertise.errors import RecipeError, RunError
from expertise.lm.config import ModelConfig
from expertise.lm.data import IGNORED, DataConfig, Prepared, TokenizerConfig, prepare
from expertise.lm.evaluate import DomainText, domain_texts, evaluate
from expertise.lm.evaluate.run import evaluate_run
from expertise.lm.model import LanguageModel
from expertise.lm.train import train
from expertise.mixture import SwiGLUExperts, TopP
from expertise.mixture.mixture import recording

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def prepared(small_text: Path) -> Prepared:
    return prepare(DataConfig(source=str(small_text)), TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def model(prepared: Prepared) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32,
        num_layers=2,
        num_heads=2,
        context=16,
        vocab_size=prepared.vocab_size,
        router=TopP.Config(p=0.5, max_parts=3),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=16),
    )
    return LanguageModel(config)


@pytest.fixture(scope="module")
def texts(prepared: Prepared) -> list[DomainText]:
    return domain_texts(prepared, "validation", 500, 16)


@torch.no_grad()
def by_hand(model: LanguageModel, prepared: Prepared, domain: str, max_bytes: int) -> float:
    """Window by window, without padding and without batches."""
    left, ids, size = max_bytes, [], 0
    for document in prepared.documents("validation", domain):
        if left <= 0:
            break
        cut = document.encode()[:left].decode(errors="ignore")
        left -= len(document.encode())
        size += len(cut.encode())
        ids += [prepared.end_of_text, *prepared.tokenizer.encode(cut, add_special_tokens=False).ids]
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[start : start + 17])
        probabilities = model(window[None, :-1])[0].double().softmax(-1)
        total += float(-probabilities[range(len(window) - 1), window[1:]].log2().sum())
    return total / size


def test_bits_per_byte_by_hand(model: LanguageModel, prepared: Prepared, texts: list[DomainText]) -> None:
    found = evaluate(model, texts, 4)
    assert list(found.bits_per_byte) == ["code", "prose"]
    for domain, bits in found.bits_per_byte.items():
        assert bits == pytest.approx(by_hand(model, prepared, domain, 500), rel=1e-5)
    assert found.num_bytes == {"code": 500, "prose": 500}
    assert found.mean_bits_per_byte == pytest.approx(sum(found.bits_per_byte.values()) / 2)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_batch_size_changes_nothing(
    model: LanguageModel, texts: list[DomainText], batch_size: int
) -> None:
    expected, found = evaluate(model, texts, 4), evaluate(model, texts, batch_size)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)
    for layer, usage in found.usage.items():
        assert torch.equal(usage.by_domain, expected.usage[layer].by_domain)
        assert torch.equal(usage.histogram, expected.usage[layer].histogram)


def test_padding_counts_nowhere(model: LanguageModel, texts: list[DomainText]) -> None:
    found = evaluate(model, texts, 4)
    targets = [int((text.windows.targets != IGNORED).sum()) for text in texts]
    assert any(bool((text.windows.targets == IGNORED).any()) for text in texts)
    for usage in found.usage.values():
        assert usage.histogram.sum(1).tolist() == targets
    for text in texts:
        padding = text.windows.targets == IGNORED
        other = text.windows.tokens.clone()
        other[padding] = 5
        changed = DomainText(
            text.domain, type(text.windows)(other, text.windows.targets, 500, text.windows.ids)
        )
        bits = evaluate(model, [changed], 4).bits_per_byte[text.domain]
        assert bits == pytest.approx(found.bits_per_byte[text.domain], rel=1e-6)


def test_usage_is_counted_by_domain(model: LanguageModel, texts: list[DomainText]) -> None:
    found = evaluate(model, texts, 4)
    assert sorted(found.usage) == [0, 1]
    for index, text in enumerate(texts):
        counted = (text.windows.targets != IGNORED).flatten()
        with recording(model) as mixtures, torch.no_grad():
            model(text.windows.tokens)
        for layer, mixture in enumerate(mixtures):
            assert mixture.last_routes is not None
            chosen = mixture.last_routes.chosen()[counted].sum(0)
            assert torch.equal(found.usage[layer].by_domain[:, index], chosen)
    result = found.to_json()
    assert result["parts_per_token"]["mean"] == pytest.approx(found.mean_parts_per_token(), abs=1e-4)
    assert set(result["parts_per_token"]["domains"]) == {"code", "prose"}
    assert [len(loads) for loads in result["loads"]] == [4, 4]


def test_the_model_is_left_as_it_was(model: LanguageModel, texts: list[DomainText]) -> None:
    state = torch.get_rng_state()
    model.train()
    evaluate(model, texts, 4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_dense_model_has_no_parts(prepared: Prepared, texts: list[DomainText]) -> None:
    config = ModelConfig(
        dim=16, num_layers=1, num_heads=1, context=16, vocab_size=prepared.vocab_size, dense_hidden=8
    )
    found = evaluate(LanguageModel(config), texts, 4)
    assert found.usage == {}
    assert found.mean_parts_per_token() == 0.0
    assert set(found.to_json()) == {"bits_per_byte", "bytes"}


def test_a_model_that_knows_nothing_needs_log_vocabulary_per_token(
    prepared: Prepared, texts: list[DomainText]
) -> None:
    config = ModelConfig(
        dim=16, num_layers=1, num_heads=1, context=16, vocab_size=prepared.vocab_size, dense_hidden=8
    )
    flat = LanguageModel(config)
    with torch.no_grad():
        flat.head_weight.zero_()
    for text in texts:
        number = int((text.windows.targets != IGNORED).sum())
        expected = number * math.log2(prepared.vocab_size) / 500
        assert evaluate(flat, [text], 4).bits_per_byte[text.domain] == pytest.approx(expected, rel=1e-5)
        rounded = evaluate(flat, [text], 4, bfloat16=True).bits_per_byte[text.domain]
        assert rounded == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_text: Path, small_recipe: Make) -> Path:
    """A run with its own copy of the text, which a test may change."""
    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(small_text, folder / "text")
    threads = torch.get_num_threads()
    train(small_recipe("train.steps=2", f"data.source={folder / 'text'}"), folder / "run", lambda _: None)
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.mark.usefixtures("same_threads")
def test_a_run_is_evaluated_by_its_folder(trained: Path) -> None:
    result = evaluate_run(trained, "validation", 400, "cpu", 1, lambda _: None)
    line = (trained / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"mean":{result["bits_per_byte"]["mean"]}' in line, "as the run itself found at its end"
    assert result["split"] == "validation"
    assert result["step"] == 2
    assert result["bytes"] == {"code": 400, "prose": 400}
    by_checkpoint = evaluate_run(trained / "checkpoints" / "step-2", "validation", 400, "cpu", 1, print)
    assert by_checkpoint == result
    test = evaluate_run(trained, "test", 400, "cpu", 1, lambda _: None)
    assert test["bits_per_byte"] != result["bits_per_byte"]


@pytest.mark.usefixtures("same_threads")
def test_what_cannot_be_evaluated_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no split 'tset'") as caught:
        evaluate_run(trained, "tset", 0, "cpu", 1, lambda _: None)
    assert caught.value.hints == ("did you mean 'test'?",)
    with pytest.raises(RecipeError, match="no split 'train'"):
        evaluate_run(trained, "train", 0, "cpu", 1, lambda _: None)
    with pytest.raises(RunError, match="no run at "):
        evaluate_run(tmp_path / "none", "validation", 0, "cpu", 1, lambda _: None)


@pytest.mark.usefixtures("same_threads")
def test_other_text_is_refused_with_both_digests(trained: Path, small_recipe: Make, tmp_path: Path) -> None:
    text = trained.parent / "text" / "prose" / "00.txt"
    before = text.read_bytes()
    recipe = (trained / "recipe.toml").read_bytes()
    try:
        text.write_bytes(before + b"\nOne line more.\n")
        longer = small_recipe("train.steps=4", f"data.source={text.parent.parent}")
        with pytest.raises(RunError, match=r"^the text has changed: .*trained on [0-9a-f]{16}….*now give"):
            train(longer, trained, lambda _: None)
        assert (trained / "recipe.toml").read_bytes() == recipe, "who is refused changes nothing"
    finally:
        text.write_bytes(before)


def test_large_logits_come_in_smaller_batches(
    model: LanguageModel, texts: list[DomainText], monkeypatch: pytest.MonkeyPatch
) -> None:
    from expertise.lm.evaluate import perplexity

    expected = evaluate(model, texts, 100).bits_per_byte
    monkeypatch.setattr(perplexity, "LARGEST_LOGITS", 2 * 16 * model.vocab_size)
    batches = [len(batch.tokens) for text in texts for batch in perplexity.passes(model, text, 100)]
    assert max(batches) == 2
    assert evaluate(model, texts, 100).bits_per_byte == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(perplexity, "LARGEST_LOGITS", 1)
    assert evaluate(model, texts, 100).bits_per_byte == pytest.approx(expected, rel=1e-6)
