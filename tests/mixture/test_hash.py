"""Hash routing: by token id alone, fixed, nothing learned."""

from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture import Hash, Mixture, SwiGLUExperts


def _parts_of(router: Hash, ids: Tensor) -> list[int]:
    routes = router(torch.randn(*ids.shape, 5), ids)
    assert routes.part_ids is not None
    return routes.part_ids[:, 0].tolist()


def test_a_part_depends_on_the_token_id_alone() -> None:
    router = Hash(6, 40)
    ids = torch.randint(40, (3, 50), generator=torch.Generator().manual_seed(1))
    first = _parts_of(router, ids)
    assert first == _parts_of(router, ids), "the vectors are others, the parts are the same"
    assert first == [int(router.table[i]) for i in ids.flatten()]
    assert router.training
    assert first == _parts_of(router.eval(), ids)


def test_routes_are_one_part_with_gate_one() -> None:
    routes = Hash(6, 40)(torch.randn(4, 5), torch.tensor([0, 3, 3, 39]))
    assert routes.parts_per_token().tolist() == [1, 1, 1, 1]
    assert torch.equal(routes.gates, torch.ones(4, 1))
    assert torch.equal(routes.affinities, routes.chosen().float())
    assert routes.logits is None
    assert not routes.gates.requires_grad


def test_the_draw_is_random_and_fixed_by_its_seed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    tables = [Hash(8, 4000, seed).table for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state), "the weights of a model must not depend on its router"
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    counts = torch.bincount(tables[0], minlength=8)
    assert 400 < counts.min() < counts.max() < 600  # 500 expected, standard deviation 21
    assert len(counts.unique()) > 1


def test_nothing_is_learned_and_the_table_is_saved() -> None:
    router = Hash(6, 40)
    assert list(router.parameters()) == []
    assert set(router.state_dict()) == {"table"}
    other = Hash(6, 40, seed=5)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.table, router.table)
    assert Hash.Config().num_params(8, 6) == 0
    assert Hash.Config(seed=5).build(8, 6, 40).table.tolist() == Hash(6, 40, 5).table.tolist()
    assert not Hash.Config().has_logits()


def test_balancing_deals_frequent_tokens_out_evenly() -> None:
    frequencies = torch.tensor([900, 500, 400, 300, 200, 100, 100, 0, 0, 0])
    router = Hash(3, 10)
    router.balance(frequencies)
    # 900 → 0; 500 → 1; 400 → 2; 300 → 2 (700); 200 → 1 (700); 100 → 1 (800, the lower id); 100 → 2 (800); …
    assert router.table.tolist()[:7] == [0, 1, 2, 2, 1, 1, 2]
    loads = torch.zeros(3, dtype=torch.int64).index_add(0, router.table, frequencies)
    assert loads.tolist() == [900, 800, 800]


def test_balancing_beats_the_draw_on_a_skewed_text() -> None:
    frequencies = (10_000 / torch.arange(1, 501)).long()
    router = Hash(8, 500)

    def busiest() -> float:
        loads = torch.zeros(8, dtype=torch.int64).index_add(0, router.table, frequencies).double()
        return float(loads.max() / loads.mean())

    before = busiest()
    router.balance(frequencies)
    # The most frequent id alone is 1.18 times the mean: nothing can be more even than that.
    assert busiest() == pytest.approx(10_000 / (float(frequencies.sum()) / 8), rel=1e-3)
    assert before > 1.3


def test_tokens_that_never_occur_are_spread_too() -> None:
    router = Hash(4, 100)
    router.balance(torch.zeros(100, dtype=torch.int64))
    assert torch.bincount(router.table).tolist() == [25] * 4


def test_a_mixture_passes_the_ids_on() -> None:
    mixture = Mixture(Hash(4, 10), SwiGLUExperts(4, 8, 16))
    x, ids = torch.randn(2, 3, 8), torch.tensor([[1, 2, 3], [4, 5, 6]])
    y = mixture(x, ids)
    for row in range(2):
        for column in range(3):
            part = int(mixture.router.table[ids[row, column]])  # type: ignore[union-attr,index]
            torch.testing.assert_close(y[row, column], mixture.parts.one(part, x[row, column][None])[0])


@pytest.mark.parametrize(
    "context",
    [
        None,
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(3),
        torch.zeros(3, 1, dtype=torch.int64),
        [1, 2, 3],
    ],
    ids=["none", "too many", "no integers", "vectors", "a list"],
)
def test_anything_but_one_id_per_token_is_refused(context: Any) -> None:
    with pytest.raises(RecipeError, match="token ids as context"):
        Hash(4, 10)(torch.randn(3, 8), context)


@pytest.mark.parametrize(("num_parts", "vocab_size"), [(0, 10), (4, 0)])
def test_no_part_or_no_token_is_refused(num_parts: int, vocab_size: int) -> None:
    with pytest.raises(RecipeError, match="parts and token ids"):
        Hash(num_parts, vocab_size)


def test_frequencies_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(RecipeError, match="9 frequencies for 10 token ids"):
        Hash(4, 10).balance(torch.ones(9, dtype=torch.int64))
