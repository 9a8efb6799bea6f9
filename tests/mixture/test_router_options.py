"""Constant weights, a start, hidden layers before centroids, and a centroid for nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from expertise.errors import RecipeError
from expertise.mixture import Context, Fixed, Mixture, SwiGLU, SwiGLUExperts, TopK, TopP
from expertise.mixture.balance import relative_load
from expertise.mixture.routers.learned import LearnedRouter

# --- constant weights ---------------------------------------------------------------------------------------


def test_constant_weights_are_the_same_for_every_token() -> None:
    x = torch.randn(2, 3, 4)
    routes = Fixed(2, [0.5, -2.0])(x)
    assert routes.is_dense
    assert torch.equal(routes.gates, torch.tensor([0.5, -2.0]).expand(6, 2))
    assert routes.logits is None
    assert torch.equal(Fixed(4)(x).gates, torch.full((6, 4), 0.25))


def test_constant_weights_learn_only_where_that_is_asked() -> None:
    given, learns = Fixed.Config(values=[0.5, 2.0]), Fixed.Config(learn=True)
    assert (given.num_params(3, 2), learns.num_params(3, 2)) == (0, 2)
    assert not any(parameter.requires_grad for parameter in given.build(3, 2).parameters())
    router = learns.build(3, 2)
    router(torch.randn(5, 3)).gates.sum().backward()
    assert router.values.grad is not None
    assert router.values.grad.tolist() == [5.0, 5.0]
    assert set(router.state_dict()) == set(given.build(3, 2).state_dict()) == {"values"}


@pytest.mark.parametrize("values", [[1.0], [math.inf, 1.0], [1.0, 2.0, 3.0]])
def test_constant_weights_that_cannot_be_are_refused(values: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"finite|weights for 2 parts"):
        Fixed.Config(values=values).check(2)


# --- a start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("squash", "start", "weights"),
    [
        ("none", [1.0, -0.5], [1.0, -0.5]),
        ("none", [], [0.5, 0.5]),
        ("softmax", [0.9, 0.1], [0.9, 0.1]),
        ("softmax", [], [0.5, 0.5]),
        ("sigmoid", [0.9, 0.4], [0.9, 0.4]),
        ("sigmoid", [], [0.5, 0.5]),
    ],
)
def test_a_network_starts_as_constant_weights(squash: Any, start: list[float], weights: list[float]) -> None:
    config = Context.Config(context_dim=3, hidden=[8, 8], squash=squash, start=start)
    config.check(2)
    context = 9 * torch.randn(6, 3)
    found = config.build(5, 2)(torch.randn(6, 5), context).gates
    torch.testing.assert_close(found, torch.tensor(weights).expand(6, 2))


def test_all_its_layers_learn_from_there() -> None:
    torch.manual_seed(0)
    router, seen = Context(3, 2, [8, 8], start=[1.0, -0.5]), torch.randn(6, 3)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (router(seen, seen).gates[:, 0] - seen[:, 1]).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        away = (router(seen, seen).gates[:, 0] - seen[:, 1]).abs()
    assert float(away.max()) < 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": [1.0]}, "start has 1 weights for 2 parts"),
        ({"start": [2.0, -1.0], "squash": "softmax"}, "softmax gives weights above 0"),
        ({"start": [0.5, 0.4], "squash": "softmax"}, "that sum to 1"),
        ({"start": [0.5, 1.0], "squash": "sigmoid"}, "sigmoid gives weights between 0 and 1"),
    ],
)
def test_a_start_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Context.Config(**fields).check(2)


def test_a_context_as_wide_as_the_tokens_needs_no_width() -> None:
    config = Context.Config(hidden=[7])
    router = config.build(4, 2)
    assert (router.context_dim, router.in_features) == (4, 4)
    assert config.num_params(4, 2) == sum(p.numel() for p in router.parameters())
    assert Context.Config(context_dim=3).build(4, 2).in_features == 3


# --- hidden layers ------------------------------------------------------------------------------------------


def test_centroids_stand_behind_the_hidden_layers() -> None:
    torch.manual_seed(0)
    router, x = TopK(4, 3, 2, hidden=[6, 5]), torch.randn(7, 4)
    deep = torch.relu(router.trunk[2](torch.relu(router.trunk[0](x))))
    plain = TopK(5, 3, 2)
    plain.load_state_dict({"weight": router.weight})
    torch.testing.assert_close(router(x).weights(), plain(deep).weights())
    # Without them the names of the weights are what they were.
    assert list(plain.state_dict()) == ["weight"]
    with pytest.raises(RecipeError, match="hidden widths must be positive"):
        TopP(4, 3, 0.5, hidden=[0])


def test_scores_are_exact_whatever_autocast_says() -> None:
    router, x = TopP(4, 3, 0.5, hidden=[6]), torch.randn(7, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(router(x).affinities, router.score(x).affinities)
    assert router(x).affinities.dtype == torch.float32


# --- nothing ------------------------------------------------------------------------------------------------


def of_logits(logits: list[list[float]], **options: Any) -> Any:
    """Routes of a top-p router with a centroid for nothing, whose logits are these; the last is nothing's."""
    width = len(logits[0])
    router = TopP(width, width - 1, nothing=True, **options)
    with torch.no_grad():
        router.weight.copy_(torch.eye(width))
    assert isinstance(router, LearnedRouter)
    return router(torch.tensor(logits))


def test_a_token_may_take_no_part() -> None:
    routes = of_logits([[4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0]], p=0.6, scale=2.0)
    both = torch.softmax(torch.tensor([4.0, 3.0, 0.0, 0.0]), 0)
    assert float(both[0]) > 0.6
    torch.testing.assert_close(routes.weights()[0], torch.tensor([2 * float(both[0]), 0.0, 0.0]))
    assert torch.equal(routes.weights()[1], torch.zeros(3)), "nothing has the mass"
    assert routes.parts_per_token().tolist() == [1, 0, 3], "even probabilities: it takes three of four"
    assert routes.part_ids.tolist() == [[0, -1, -1], [-1, -1, -1], [0, 1, 2]]
    assert (routes.num_parts, routes.num_slots, routes.logits) == (3, 3, None)


def test_nothing_takes_its_place_in_the_order() -> None:
    """It is passed over in the record, whatever stands behind it, and counts towards the mass and the cap."""
    routes = of_logits([[1.0, 3.0, 0.0, 2.0]], p=0.95)
    assert routes.part_ids.tolist() == [[1, 0, -1]]
    capped = of_logits([[1.0, 3.0, 0.0, 2.0]], p=0.95, max_parts=2)
    assert capped.part_ids.tolist() == [[1, -1]]
    assert (relative_load(capped)[0] > 0).tolist() == [False, True, False]
    assert relative_load(of_logits([[0.0, 9.0]], p=0.5)).isfinite().all()


def test_a_token_without_a_part_keeps_what_is_always_on() -> None:
    torch.manual_seed(0)
    router = TopP(4, 3, 0.5, nothing=True)
    mixture, x = Mixture(router, SwiGLUExperts(3, 4, 6), SwiGLU(4, 5)), torch.randn(9, 4)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[3, 0] = 50.0
    x[:, 0] = x[:, 0].abs() + 1
    assert mixture.always is not None
    assert torch.equal(mixture(x), mixture.always(x))


def test_a_bias_evens_out_parts_and_not_nothing() -> None:
    with pytest.raises(RecipeError, match="nothing has no bias_step"):
        TopP.Config(p=0.5, nothing=True, bias_step=0.1)
    assert not TopP.Config(p=0.5, nothing=True).has_logits()
