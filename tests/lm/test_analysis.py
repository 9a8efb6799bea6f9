"""What each expert learnt, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expertise.lm.analysis import LayerAnalysis, analyse_layers, passage
from expertise.lm.config import ModelConfig
from expertise.lm.data import IGNORED, DataConfig, TokenizerConfig, prepare
from expertise.lm.evaluate import DomainText, domain_texts
from expertise.lm.model import LanguageModel
from expertise.mixture import SwiGLUExperts, TopP
from expertise.mixture.measures import Usage
from expertise.mixture.mixture import recording


@pytest.fixture(scope="module")
def texts(small_text: Path) -> list[DomainText]:
    prepared = prepare(DataConfig(source=str(small_text)), TokenizerConfig(vocab_size=300))
    return domain_texts(prepared, "validation", 500, 16)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32,
        num_layers=3,
        num_heads=2,
        context=16,
        vocab_size=300,
        first_dense=1,
        dense_hidden=8,
        router=TopP.Config(p=0.5, max_parts=3),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=16),
    )
    return LanguageModel(config).eval()


def test_tokens_and_domains_are_counted(model: LanguageModel, texts: list[DomainText]) -> None:
    layers = analyse_layers(model, texts, 4)
    assert sorted(layers) == [1, 2]
    tables = {layer: torch.zeros(4, 300, dtype=torch.int64) for layer in layers}
    for text in texts:
        with recording(model), torch.no_grad():
            model(text.windows.tokens)
        for layer, mixture in model.mixtures().items():
            assert mixture.last_routes is not None
            chosen = mixture.last_routes.chosen()
            pairs = zip(text.windows.tokens.flatten(), text.windows.targets.flatten(), strict=True)
            for position, (token, target) in enumerate(pairs):
                if target != IGNORED:
                    tables[layer][chosen[position], token] += 1
    for layer, analysis in layers.items():
        assert torch.equal(analysis.token_counts, tables[layer])
        assert torch.equal(analysis.usage.by_domain.sum(1), tables[layer].sum(1))
        torch.testing.assert_close(analysis.domain_share().sum(1), torch.ones(4, dtype=torch.float64))


def test_favourites_are_frequent_and_over_represented() -> None:
    counts = torch.tensor([[50, 50, 9, 2, 0], [50, 0, 1, 0, 0]])
    analysis = LayerAnalysis(Usage(2, 1, 1), counts)
    assert analysis.favourite_tokens(0, 5) == [1, 2], "0 is no favourite, 3 is too rare"
    assert analysis.favourite_tokens(0, 1) == [1]
    assert analysis.favourite_tokens(0, 5, least=1) == [1, 2, 3]
    assert analysis.favourite_tokens(1, 5) == [0]


def test_a_passage_is_the_first_tokens_and_their_routes(
    model: LanguageModel, texts: list[DomainText]
) -> None:
    found = passage(model, texts[0], 10)
    assert found.token_ids == texts[0].windows.ids[:10].tolist()
    assert {layer: routes.num_tokens for layer, routes in found.routes.items()} == {1: 10, 2: 10}
    assert len(passage(model, texts[0], 99).token_ids) == 16, "no longer than the context"
