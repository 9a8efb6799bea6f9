"""What is descended and what is reported; accumulation against the large batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.lm import objective
from expertise.lm.config import ModelConfig
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import BalanceConfig
from expertise.mixture import Routes, SwiGLU, SwiGLUExperts, TopP, balance
from expertise.mixture.mixture import recording

FIELDS: dict[str, Any] = {
    "dim": 32,
    "num_layers": 3,
    "num_heads": 2,
    "context": 16,
    "vocab_size": 40,
    "dense_hidden": 16,
    "first_dense": 1,
    "router": TopP.Config(p=0.5),
    "parts": SwiGLUExperts.Config(num_parts=5, hidden=16),
    "always": SwiGLU.Config(hidden=16),
}


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(**FIELDS))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(40, (4, 17), generator=torch.Generator().manual_seed(1))
    # Unlike sequences, so that statistics over one and over all differ.
    ids[0], ids[3] = 3, ids[3] % 5
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def routes_of(model: LanguageModel, tokens: Tensor) -> list[Any]:
    with recording(model) as mixtures:
        model(tokens)
    return [mixture.last_routes for mixture in mixtures]


def test_the_reported_loss_is_the_language_models_alone(
    model: LanguageModel, batch: tuple[Tensor, Tensor]
) -> None:
    tokens, targets = batch
    config = BalanceConfig(expert=0.3, entropy=0.7, z=0.2, device=0.5, device_groups=2)
    found = objective.losses(model, tokens, targets, config)
    logits = model(tokens).log_softmax(-1)
    expected = -logits.gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(found.reported["loss"], expected)
    assert set(found.reported) == {
        "loss",
        "balance_expert",
        "balance_entropy",
        "balance_z",
        "balance_device",
    }
    layers = routes_of(model, tokens)
    assert len(layers) == 2
    groups = [[0, 1, 2], [3, 4]]
    terms = {
        "expert": [balance.expert_balance(r) for r in layers],
        "entropy": [balance.entropy(r) for r in layers],
        "z": [balance.z_loss(r) for r in layers],
        "device": [balance.device_balance(r, groups) for r in layers],
    }
    coefficients = {"expert": 0.3, "entropy": 0.7, "z": 0.2, "device": 0.5}
    # Descended: the sum over layers. Reported: unweighted, the mean over layers.
    total = expected + sum(coefficients[name] * sum(values) for name, values in terms.items())
    torch.testing.assert_close(found.total, total)
    for name, values in terms.items():
        torch.testing.assert_close(found.reported[f"balance_{name}"], sum(values) / 2)


def test_without_coefficients_nothing_is_added_but_all_is_seen(
    model: LanguageModel, batch: tuple[Tensor, Tensor]
) -> None:
    found = objective.losses(model, *batch, BalanceConfig())
    assert torch.equal(found.total, found.reported["loss"])
    assert set(found.reported) == {"loss", "balance_expert", "balance_entropy"}


def test_a_dense_model_has_no_routes_to_speak_of(batch: tuple[Tensor, Tensor]) -> None:
    fields = {k: v for k, v in FIELDS.items() if k not in ("router", "parts", "always")}
    dense = LanguageModel(ModelConfig(**fields))
    found = objective.losses(dense, *batch, BalanceConfig(expert=0.1), detail=True)
    assert set(found.reported) == {"loss"}
    assert torch.equal(found.total, found.reported["loss"])
    assert found.tables == {}


def test_targets_that_are_ignored_do_not_count(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> None:
    tokens, targets = batch
    masked = targets.clone()
    masked[:, :10] = -100
    expected = F.cross_entropy(model(tokens)[:, 10:].flatten(0, 1), targets[:, 10:].flatten())
    torch.testing.assert_close(objective.next_token_loss(model, tokens, masked), expected)


def test_details_are_the_loads_of_each_layer(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> None:
    tokens, targets = batch
    assert objective.losses(model, tokens, targets, BalanceConfig()).tables == {}
    tables = objective.losses(model, tokens, targets, BalanceConfig(), detail=True).tables
    assert set(tables) == {"parts_per_token", "load_0", "load_1"}
    for index, routes in enumerate(routes_of(model, tokens)):
        chosen = torch.zeros(5)
        for row, count in zip(routes.part_ids.tolist(), routes.counts.tolist(), strict=True):
            for part in row[:count]:
                chosen[part] += 1
        assert float(tables["parts_per_token"][index]) == pytest.approx(float(chosen.sum()) / 64)
        torch.testing.assert_close(tables[f"load_{index}"].float(), chosen / chosen.mean())


def test_routes_are_not_kept(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> None:
    objective.losses(model, *batch, BalanceConfig())
    assert all(mixture.last_routes is None for mixture in model.mixtures().values())


def gradients(
    model: LanguageModel, batch: tuple[Tensor, Tensor], config: BalanceConfig, cuts: int
) -> list[Tensor]:
    model.zero_grad()
    for tokens, targets in zip(batch[0].chunk(cuts), batch[1].chunk(cuts), strict=True):
        (objective.losses(model, tokens, targets, config).total / cuts).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def distance(first: list[Tensor], second: list[Tensor]) -> float:
    pairs = list(zip(first, second, strict=True))
    return float(
        sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(a.square().sum() for a in first).sqrt()
    )


@pytest.mark.parametrize("cuts", [2, 4])
@pytest.mark.parametrize(
    "config",
    [
        BalanceConfig(),
        BalanceConfig(expert=1.0, per="sequence"),
        BalanceConfig(entropy=1.0),
        BalanceConfig(z=1.0),
    ],
    ids=["language", "per sequence", "entropy", "z"],
)
def test_accumulation_equals_the_large_batch(
    model: LanguageModel, batch: tuple[Tensor, Tensor], config: BalanceConfig, cuts: int
) -> None:
    assert distance(gradients(model, batch, config, 1), gradients(model, batch, config, cuts)) < 1e-5


@pytest.mark.parametrize(
    "config",
    [BalanceConfig(expert=1.0), BalanceConfig(device=1.0, device_groups=2)],
    ids=["expert", "device"],
)
def test_batch_level_balance_sees_one_micro_batch(
    model: LanguageModel, batch: tuple[Tensor, Tensor], config: BalanceConfig
) -> None:
    """Documented: its statistics are over one micro-batch, so the cut matters."""
    assert distance(gradients(model, batch, config, 1), gradients(model, batch, config, 4)) > 1e-3


@pytest.mark.parametrize(("parts", "groups", "sizes"), [(6, 3, [2, 2, 2]), (5, 2, [3, 2]), (4, 1, [4])])
def test_groups_are_as_equal_as_can_be(parts: int, groups: int, sizes: list[int]) -> None:
    found = objective.equal_groups(parts, groups)
    assert [len(group) for group in found] == sizes
    assert [part for group in found for part in group] == list(range(parts))


def test_more_groups_than_parts_are_refused(model: LanguageModel, batch: tuple[Tensor, Tensor]) -> None:
    # An empty group has a mean load of 0 / 0.
    with pytest.raises(RecipeError, match="group"):
        objective.losses(model, *batch, BalanceConfig(device=0.1, device_groups=9))


def test_the_first_coefficient_that_no_router_can_serve_is_named() -> None:
    given = Routes.dense(torch.ones(4, 3))
    for config, name in ((BalanceConfig(expert=0.1, z=0.2), "expert"), (BalanceConfig(z=0.2), "z")):
        with pytest.raises(RecipeError, match=rf"balance\.{name} "):
            objective.route_losses([given], config, 1)
    assert objective.route_losses([given], BalanceConfig(), 1) == (None, {})
