"""What routes tell, on tables small enough to count by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture import Routes
from expertise.mixture.measures import Usage, layer_overlap, load, mutual_information, parts_by_domain

Make = Callable[..., Routes]

CHOSEN = [[0], [0, 2], [2, 1, 0], [0]]
DOMAINS = [1, 0, 1, 1]


@pytest.fixture
def routes(sparse_routes: Make, random_affinities: Callable[..., Tensor]) -> Routes:
    return sparse_routes(random_affinities(4, 4), CHOSEN)


def test_load_counts_a_token_for_each_of_its_parts(routes: Routes) -> None:
    """Counts [4, 1, 2, 0], their mean 7/4."""
    expected = torch.tensor([4.0, 1.0, 2.0, 0.0]) / 1.75
    torch.testing.assert_close(load(routes).float(), expected)


def test_parts_by_domain(routes: Routes) -> None:
    table = parts_by_domain(routes, torch.tensor(DOMAINS), 3)
    assert table.dtype == torch.int64
    assert table.tolist() == [[1, 3, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("num_domains", [2, 4, 8])
def test_mutual_information_of_parts_that_tell_the_domain(num_domains: int) -> None:
    """Two parts to each domain, equally many tokens: log2 of the number of domains."""
    table = 5 * torch.eye(num_domains, dtype=torch.int64).repeat_interleave(2, dim=0)
    assert mutual_information(table) == pytest.approx(math.log2(num_domains))


def test_mutual_information_of_independent_tables_is_zero() -> None:
    table = torch.tensor([[1], [4], [0]]) * torch.tensor([[3, 7, 2]])
    assert mutual_information(table) == pytest.approx(0.0, abs=1e-12)
    assert mutual_information(torch.zeros(3, 2, dtype=torch.int64)) == 0.0


def test_mutual_information_by_hand() -> None:
    """[[1/2, 0], [1/4, 1/4]]: 1/2 log2(4/3) + 1/4 log2(2/3) + 1/4 log2 2."""
    expected = 0.5 * math.log2(4 / 3) + 0.25 * math.log2(2 / 3) + 0.25
    assert mutual_information(torch.tensor([[2, 0], [1, 1]])) == pytest.approx(expected)
    assert mutual_information(torch.tensor([[2, 1], [0, 1]])) == pytest.approx(expected)


def test_layer_overlap_by_hand(sparse_routes: Make, random_affinities: Callable[..., Tensor]) -> None:
    """Tokens of the first layer's parts: {0, 1}, {1, 2}, {}; of the second's: {0, 1}, {}, {2}."""
    affinities = random_affinities(3, 3)
    first = sparse_routes(affinities, [[0], [0, 1], [1]])
    second = sparse_routes(affinities, [[0], [0], [2]])
    expected = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 0.0, 0.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(layer_overlap(first, second).float(), expected)
    torch.testing.assert_close(layer_overlap(second, first).float(), expected.T)


def test_layer_overlap_of_layers_with_different_numbers_of_parts(
    sparse_routes: Make, random_affinities: Callable[..., Tensor]
) -> None:
    first = sparse_routes(random_affinities(3, 5), [[4], [0], [1]])
    second = sparse_routes(random_affinities(3, 2), [[0], [1], [1]])
    overlap = layer_overlap(first, second)
    assert overlap.shape == (5, 2)
    assert overlap[4, 0] == 1


def _entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row)


class TestUsage:
    def test_counts(self, routes: Routes) -> None:
        usage = Usage(4, 3, 4)
        usage.add(routes, torch.tensor(DOMAINS))
        assert usage.num_tokens == 4
        assert usage.by_domain.tolist() == [[1, 3, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
        assert usage.histogram.tolist() == [[0, 0, 1, 0, 0], [0, 2, 0, 1, 0], [0, 0, 0, 0, 0]]
        assert usage.parts_per_token() == pytest.approx(7 / 4)
        *means, last = usage.parts_per_token_by_domain()
        assert means == pytest.approx([2.0, 5 / 3])
        assert last is None, "no token of that domain was counted"
        assert usage.mean_entropy() == pytest.approx(
            sum(_entropy(row) for row in routes.affinities.tolist()) / 4, rel=1e-5
        )
        torch.testing.assert_close(usage.load(), load(routes))

    def test_batches_add_up_to_one_shot(
        self, sparse_routes: Make, random_affinities: Callable[..., Tensor]
    ) -> None:
        """Batches of different lengths and numbers of slots."""
        affinities, domains = random_affinities(9, 4), torch.tensor([0, 1, 2, 0, -1, 1, 2, 2, 0])
        chosen = [[0], [1], [2, 3], [0, 1, 2, 3], [3], [3, 2], [1], [0, 3], [2, 0, 1]]
        at_once, bit_by_bit = Usage(4, 3, 4), Usage(4, 3, 4)
        at_once.add(sparse_routes(affinities, chosen), domains)
        for start, end in ((0, 2), (2, 3), (3, 9)):
            batch = sparse_routes(affinities[start:end], chosen[start:end])
            bit_by_bit.add(batch, domains[start:end])
        assert torch.equal(bit_by_bit.by_domain, at_once.by_domain)
        assert torch.equal(bit_by_bit.histogram, at_once.histogram)
        assert bit_by_bit.mean_entropy() == pytest.approx(at_once.mean_entropy())
        assert at_once.num_tokens == 8

    def test_ignored_tokens_leave_no_trace(self, routes: Routes) -> None:
        some, none = Usage(4, 2, 4), Usage(4, 2, 4)
        some.add(routes, torch.tensor([-1, 0, -1, 1]))
        assert some.num_tokens == 2
        assert some.by_domain.tolist() == [[1, 1], [0, 0], [1, 0], [0, 0]]
        rows = routes.affinities.tolist()
        assert some.mean_entropy() == pytest.approx((_entropy(rows[1]) + _entropy(rows[3])) / 2, rel=1e-5)
        none.add(routes, torch.full((4,), -1))
        assert (none.num_tokens, none.mean_entropy(), none.parts_per_token()) == (0, None, None)
        assert none.load().tolist() == [0.0] * 4
        assert none.parts_per_token_by_domain() == [None, None]

    def test_dense_routes(self, random_affinities: Callable[..., Tensor]) -> None:
        usage = Usage(3, 1, 3)
        usage.add(Routes.dense(random_affinities(5, 3)), torch.zeros(5, dtype=torch.int64))
        assert usage.by_domain.tolist() == [[5]] * 3
        assert usage.histogram.tolist() == [[0, 0, 0, 5]]

    @pytest.mark.parametrize("last_domain", [0, 1])
    def test_more_parts_than_announced_are_not_counted_for_another_domain(
        self, routes: Routes, last_domain: int
    ) -> None:
        """`max_parts` 2, a token with 3 parts: an error, never a wrong histogram."""
        usage = Usage(4, 2, 2)
        with pytest.raises(RecipeError, match="max_parts"):
            usage.add(routes, torch.full((4,), last_domain))
