"""`Routes` tells the same story as the lists that it was made from."""

from collections.abc import Callable

import pytest
import torch

from expertise.mixture import Routes

Make = Callable[..., Routes]

AFFINITIES = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.3, 0.2, 0.4], [0.25, 0.25, 0.25, 0.25]]
CHOSEN = [[0], [3, 1, 2], [0, 1]]


@pytest.fixture
def varying(sparse_routes: Make) -> Routes:
    return sparse_routes(AFFINITIES, CHOSEN)


def test_sizes(varying: Routes) -> None:
    assert (varying.num_tokens, varying.num_parts, varying.num_slots) == (3, 4, 3)
    assert not varying.is_dense


def test_used_slots_come_first(varying: Routes) -> None:
    assert varying.used().tolist() == [[True, False, False], [True, True, True], [True, True, False]]


def test_parts_per_token(varying: Routes) -> None:
    assert varying.parts_per_token().tolist() == [1, 3, 2]


def test_chosen_does_not_take_an_unused_slot_for_part_0(varying: Routes) -> None:
    table = varying.chosen()
    assert table.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in table] == [sorted(parts) for parts in CHOSEN]


def test_weights_are_the_gates_in_place_and_keep_their_gradient(sparse_routes: Make) -> None:
    table = torch.tensor(AFFINITIES, requires_grad=True)
    routes = sparse_routes(table, CHOSEN)
    expected = [[0.5, 0, 0, 0], [0, 0.3, 0.2, 0.4], [0.25, 0.25, 0, 0]]
    torch.testing.assert_close(routes.weights(), torch.tensor(expected))
    routes.weights().sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, routes.chosen().float())


def test_weights_ignore_what_stands_in_unused_slots() -> None:
    routes = Routes(
        gates=torch.tensor([[0.7, 9.0]]),
        affinities=torch.tensor([[0.3, 0.7]]),
        part_ids=torch.tensor([[1, -1]]),
        counts=torch.tensor([1]),
    )
    torch.testing.assert_close(routes.weights(), torch.tensor([[0.0, 0.7]]))


def test_a_gate_of_zero_is_still_a_choice(sparse_routes: Make) -> None:
    routes = sparse_routes([[1.0, 0.0]], [[0, 1]])
    assert routes.chosen().tolist() == [[True, True]]


def test_without_counts_every_slot_is_used() -> None:
    routes = Routes(
        gates=torch.ones(2, 2), affinities=torch.ones(2, 3) / 3, part_ids=torch.tensor([[2, 0], [1, 2]])
    )
    assert routes.used().all()
    assert routes.parts_per_token().tolist() == [2, 2]
    assert routes.parts_per_token().dtype == torch.int64
    assert routes.chosen().tolist() == [[True, False, True], [False, True, True]]


def test_dense() -> None:
    gates = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    routes = Routes.dense(gates)
    assert routes.is_dense
    assert routes.num_slots == routes.num_parts == 2
    assert routes.parts_per_token().tolist() == [2, 2]
    assert routes.chosen().all()
    assert routes.used().all()
    assert routes.weights() is gates
    assert routes.affinities is gates


def test_detached_has_the_same_values_without_graph(sparse_routes: Make) -> None:
    routes = sparse_routes(torch.tensor(AFFINITIES, requires_grad=True), CHOSEN)
    assert routes.gates.requires_grad
    kept = routes.detached()
    assert not kept.gates.requires_grad
    assert not kept.affinities.requires_grad
    assert torch.equal(kept.gates, routes.gates)
    assert kept.part_ids is not None
    assert routes.part_ids is not None
    assert torch.equal(kept.part_ids, routes.part_ids)
    assert kept.parts_per_token().tolist() == [1, 3, 2]
    assert kept.logits is None


def test_no_tokens() -> None:
    routes = Routes(
        gates=torch.ones(0, 2),
        affinities=torch.ones(0, 3),
        part_ids=torch.ones(0, 2, dtype=torch.int64),
        counts=torch.ones(0, dtype=torch.int64),
    )
    assert routes.chosen().shape == (0, 3)
    assert routes.weights().shape == (0, 3)
    assert routes.parts_per_token().tolist() == []


def test_one_choice_for_several_tokens_in_a_row(varying: Routes) -> None:
    each = varying.each(2)
    assert each.num_tokens == 6
    assert each.parts_per_token().tolist() == [1, 1, 3, 3, 2, 2]
    assert torch.equal(each.weights(), varying.weights().repeat_interleave(2, 0))
    assert torch.equal(each.affinities, varying.affinities.repeat_interleave(2, 0))
    assert each.logits is None
    assert varying.each(1) is varying
    assert varying.each(0).num_tokens == 0
    gates = torch.randn(2, 3, requires_grad=True)
    dense = Routes.dense(gates).each(3)
    assert dense.is_dense
    (dense.weights() * torch.arange(6.0)[:, None]).sum().backward()
    assert gates.grad is not None
    assert gates.grad.tolist() == [[3.0] * 3, [12.0] * 3]
