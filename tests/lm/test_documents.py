"""Documents side by side in a window: each is computed and learnt as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.lm import objective
from expertise.lm.attention import KeyValueCache, Spans
from expertise.lm.config import ModelConfig
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import BalanceConfig
from expertise.mixture import SwiGLU, SwiGLUExperts, TopK, TopP

BASE: dict[str, Any] = {
    "dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "context": 32,
    "vocab_size": 61,
    "router": TopP.Config(p=0.5, max_parts=3),
    "parts": SwiGLUExperts.Config(num_parts=5, hidden=16),
    "always": SwiGLU.Config(hidden=24),
}
MODELS: dict[str, dict[str, Any]] = {
    "top-p": BASE,
    "top-k, grouped queries": {**BASE, "router": TopK.Config(k=2), "num_kv_heads": 2, "qk_norm": True},
    "dense": {k: v for k, v in BASE.items() if k not in ("router", "parts", "always")} | {"dense_hidden": 40},
}
SIZES = ((5, 1, 9, 4), (13, 6), (19,))
"""Tokens of each document, row by row; what is left of 20 is padding."""


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(**MODELS[request.param])).eval()


def window() -> tuple[Tensor, Tensor]:
    """Tokens and document numbers; padding is -1."""
    tokens = torch.randint(61, (len(SIZES), 20), generator=torch.Generator().manual_seed(1))
    documents = torch.full_like(tokens, -1)
    for row, sizes in enumerate(SIZES):
        numbers = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        documents[row, : len(numbers)] = numbers
    return tokens, documents


def places() -> list[tuple[int, int, int]]:
    """Row, start and end of each document."""
    found = []
    for row, sizes in enumerate(SIZES):
        start = 0
        for size in sizes:
            found.append((row, start, start + size))
            start += size
    return found


def test_logits_in_a_pack_are_those_of_the_document_alone(model: LanguageModel) -> None:
    tokens, documents = window()
    with torch.no_grad():
        packed = model(tokens, documents=documents)
        for row, start, end in places():
            alone = model(tokens[row : row + 1, start:end])
            torch.testing.assert_close(packed[row : row + 1, start:end], alone, rtol=0, atol=1e-5)
        without = model(tokens)
    assert (without[0, 5:15] - packed[0, 5:15]).abs().max() > 1e-2, "the test must be able to fail"


def test_no_gradient_leaks_across_documents(model: LanguageModel) -> None:
    tokens, documents = window()
    given: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        given.append(output.detach().requires_grad_())
        return given[-1]

    handle = model.embedding.register_forward_hook(keep)
    for row, start, end in places():
        logits = model(tokens, documents=documents)
        (gradient,) = torch.autograd.grad(logits[row, start:end].square().sum(), given[-1])
        inside = torch.zeros_like(documents, dtype=torch.bool)
        inside[row, start:end] = True
        assert (gradient[~inside] == 0).all()
        assert (gradient[inside].abs().sum(-1) > 0).all()
    handle.remove()


def test_positions_start_anew_and_the_mask_is_block_diagonal() -> None:
    spans = Spans.of(torch.tensor([[0, 0, 1, 1, 1, -1], [3, 3, 3, 3, 0, 0]]))
    assert spans.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]
    assert spans.mask.shape == (2, 1, 6, 6)
    expected = torch.block_diag(*(torch.ones(n, n).tril() for n in (2, 3, 1))).bool()
    assert torch.equal(spans.mask[0, 0], expected)
    # A number that comes again is another document.
    again = Spans.of(torch.tensor([[0, 1, 0]]))
    assert torch.equal(again.mask[0, 0], torch.eye(3, dtype=torch.bool))


def test_one_document_is_the_plain_model(model: LanguageModel) -> None:
    tokens, _ = window()
    with torch.no_grad():
        plain = model(tokens)
        torch.testing.assert_close(
            model(tokens, documents=torch.zeros_like(tokens)), plain, rtol=0, atol=1e-5
        )


def test_documents_and_a_cache_are_refused(model: LanguageModel) -> None:
    tokens, documents = window()
    cache = KeyValueCache(model.config, len(tokens), model.embedding.weight)
    with pytest.raises(RecipeError, match="cannot be used with documents"):
        model(tokens, cache, documents)


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_padding_is_in_no_loss_and_no_measure(per: Any) -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**BASE)).eval()
    tokens, documents = window()
    targets = tokens.roll(-1, 1).masked_fill(documents < 0, -100)
    config = BalanceConfig(expert=0.1, per=per, entropy=0.1, z=0.1)

    def all_of(tokens: Tensor) -> dict[str, Tensor]:
        found = objective.losses(model, tokens, targets, config, True, documents=documents)
        return {"total": found.total, **found.reported, **found.tables}

    first = all_of(tokens)
    second = all_of(tokens.masked_fill(documents < 0, 7))
    assert set(first) >= {"total", "loss", "balance_expert", "balance_entropy", "balance_z", "load_0"}
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name)
    # One row at a time, without its padding: what is a mean over tokens or rows must be the same.
    if per == "sequence":
        rows = [
            objective.losses(
                model,
                tokens[r : r + 1, :n],
                targets[r : r + 1, :n],
                config,
                False,
                documents=documents[r : r + 1, :n],
            )
            for r, n in enumerate(map(sum, SIZES))
        ]
        mean = torch.stack([row.reported["balance_expert"] for row in rows]).mean()
        torch.testing.assert_close(first["balance_expert"], mean)


def test_means_of_uneven_micro_batches_average_to_the_mean_of_all() -> None:
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(**BASE)).eval()
    tokens, documents = window()
    targets = tokens.roll(-1, 1).masked_fill(documents < 0, -100)
    targets[0, :12] = -100
    number = int((targets != -100).sum())
    with torch.no_grad():
        whole = objective.next_token_loss(model, tokens, targets, documents)
        cut = [
            objective.next_token_loss(
                model, tokens[r : r + 1], targets[r : r + 1], documents[r : r + 1], number / len(tokens)
            )
            for r in range(len(tokens))
        ]
    torch.testing.assert_close(torch.stack(cut).mean(), whole)
