"""Exact semantics of top-k (DeepSeekMoE Eqs. 9-11), top-p (Dynamic MoE §2.2) and their options."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture import Router, Routes, TopK, TopP
from expertise.mixture.routers.learned import greatest

OFF = -1e4
"""A logit so low that its probability is 0 exactly."""

examples = hypothesis.settings(max_examples=60, deadline=None)


def _route(router: Router, logits: Sequence[Sequence[float]] | Tensor) -> Routes:
    """Routes for tokens with these logits: the centroids become unit vectors, so a token is its logits."""
    with torch.no_grad():
        router.get_parameter("weight").copy_(torch.eye(router.num_parts))
    routes: Routes = router(torch.as_tensor(logits, dtype=torch.float32))
    return routes


def _top_k(num_parts: int, k: int, **options: Any) -> TopK:
    return TopK(num_parts, num_parts, k, **options)


def _top_p(num_parts: int, p: float, **options: Any) -> TopP:
    return TopP(num_parts, num_parts, p, **options)


def _ids(routes: Routes) -> list[list[int]]:
    """The chosen parts of each token, in the order of the slots."""
    assert routes.part_ids is not None
    return [row[:n].tolist() for row, n in zip(routes.part_ids, routes.parts_per_token(), strict=True)]


# --- top-k ----------------------------------------------------------------------------------------------


def test_top_k_takes_the_greatest_first_with_raw_probabilities_over_all_parts() -> None:
    probabilities = [0.1, 0.4, 0.2, 0.3]
    routes = _route(_top_k(4, 2), [[math.log(q) for q in probabilities]])
    assert _ids(routes) == [[1, 3]]
    torch.testing.assert_close(routes.gates, torch.tensor([[0.4, 0.3]]))
    torch.testing.assert_close(routes.affinities, torch.tensor([probabilities]))
    assert routes.logits is not None
    torch.testing.assert_close(routes.logits, torch.tensor([probabilities]).log())


def test_top_k_of_all_parts() -> None:
    routes = _route(_top_k(3, 3), [[0.0, 2.0, 1.0]])
    assert _ids(routes) == [[1, 2, 0]]
    torch.testing.assert_close(routes.gates.sum(), torch.tensor(1.0))


# --- top-p ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.3, [1]), (0.45, [1, 3]), (0.65, [1, 3]), (0.75, [1, 3, 2]), (0.95, [1, 3, 2, 0])],
)
def test_top_p_keeps_the_part_that_crosses(p: float, expected: list[int]) -> None:
    probabilities = [0.1, 0.4, 0.2, 0.3]
    routes = _route(_top_p(4, p), [[math.log(q) for q in probabilities]])
    assert _ids(routes) == [expected]
    torch.testing.assert_close(routes.gates[0, : len(expected)], torch.tensor(probabilities)[expected])


@pytest.mark.parametrize("live", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("sixteenths", [1, 2, 4, 8, 12, 15])
def test_a_sum_of_exactly_p_has_not_passed_it(live: int, sixteenths: int) -> None:
    """`live` parts of exactly 1/live each: n of them sum to n/live, and the first n/live > p counts."""
    num_parts, p = 16, sixteenths / 16
    routes = _route(_top_p(num_parts, p), [[0.0] * live + [OFF] * (num_parts - live)])
    assert routes.affinities[0, 0].item() == 1 / live  # exact: nothing below depends on rounding
    expected = next(n for n in range(1, live + 1) if Fraction(n, live) > Fraction(sixteenths, 16))
    assert _ids(routes) == [list(range(expected))]


def test_p_of_one_is_never_exceeded_so_all_parts_are_taken() -> None:
    routes = _route(_top_p(8, 1.0), [[0.0] * 8, [0.0] * 4 + [OFF] * 4, [9.0] + [OFF] * 7])
    assert [len(parts) for parts in _ids(routes)] == [8, 8, 8]
    assert [sorted(parts) for parts in _ids(routes)] == [list(range(8))] * 3


@pytest.mark.parametrize("num_parts", [8, 64])
def test_p_of_one_takes_all_parts_whatever_the_rounding(num_parts: int) -> None:
    """Probabilities sum to 1 by definition; that their float32 sum may be 1 + 1e-7 is no reason to stop."""
    routes = _route(_top_p(num_parts, 1.0), 4 * torch.randn(500, num_parts))
    assert routes.parts_per_token().unique().tolist() == [num_parts]


def test_at_least_one_part() -> None:
    routes = _route(_top_p(4, 1e-6), [[0.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
    assert _ids(routes) == [[0], [1]]


@pytest.mark.parametrize("cap", [1, 2, 3, 8])
def test_max_parts_caps_and_changes_nothing_else(cap: int) -> None:
    logits = torch.randn(50, 8)
    free, capped = _route(_top_p(8, 0.7), logits), _route(_top_p(8, 0.7, max_parts=cap), logits)
    assert capped.num_slots == cap
    assert _ids(capped) == [parts[:cap] for parts in _ids(free)]
    torch.testing.assert_close(capped.gates, free.gates[:, :cap])


def test_unused_slots_hold_no_part_and_no_gate() -> None:
    routes = _route(_top_p(4, 0.5), [[5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert routes.part_ids is not None
    assert routes.part_ids.tolist() == [[0, -1, -1, -1], [0, 1, 2, -1]]
    assert torch.equal(routes.gates == 0, ~routes.used())


def _by_definition(probabilities: Sequence[float], p: float, cap: int | None) -> list[int]:
    """Dynamic MoE §2.2 in exact arithmetic."""
    chosen: list[int] = []
    total = Fraction(0)
    for part in sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i)):
        chosen.append(part)
        total += Fraction(probabilities[part])
        if total > Fraction(p) or len(chosen) == cap:
            break
    return chosen


@examples
@hypothesis.given(
    logits=st.lists(
        st.one_of(st.floats(-8, 8, width=32), st.sampled_from([-1.0, 0.0, 0.5])), min_size=1, max_size=24
    ),
    p=st.floats(0.015625, 0.984375, width=32),
    data=st.data(),
)
def test_top_p_equals_its_definition(logits: list[float], p: float, data: st.DataObject) -> None:
    num_parts = len(logits)
    cap = data.draw(st.one_of(st.none(), st.integers(1, num_parts)))
    routes = _route(_top_p(num_parts, p, max_parts=cap), [logits])
    probabilities = routes.affinities[0].tolist()
    cumulated = torch.tensor(sorted(probabilities, reverse=True), dtype=torch.float64).cumsum(0)
    # Where a sum lies within rounding of p either answer is right; exact ties have their own test.
    hypothesis.assume((cumulated - p).abs().min().item() > 1e-6)
    (chosen,) = _ids(routes)
    assert chosen == _by_definition(probabilities, p, cap)
    assert len(set(chosen)) == len(chosen)
    assert routes.gates.sum().item() > p or len(chosen) in (cap, num_parts)


# --- ties -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_parts", [2, 7, 64, 513])
def test_equal_scores_go_to_the_lower_ids(num_parts: int) -> None:
    k = max(1, num_parts // 2)
    logits = torch.zeros(3, num_parts)
    assert _ids(_route(_top_k(num_parts, k), logits)) == [list(range(k))] * 3
    for parts in _ids(_route(_top_p(num_parts, 0.4), logits)):
        assert parts == list(range(len(parts)))


@pytest.mark.parametrize("router", [TopK(4, 6, 3), TopP(4, 6, 0.99, max_parts=3)])
def test_duplicate_centroids_go_by_the_lower_id(router: Router) -> None:
    """Whole numbers, for which a matrix product is exact: else equal columns may round apart."""
    with torch.no_grad():
        router.get_parameter("weight").copy_(torch.tensor([[1.0, -1, 0, 2], [0, 1, 1, -1]]).repeat(3, 1))
    x = torch.randint(-1, 2, (40, 4)).float()
    distinct = x @ torch.tensor([1.0, -2, -1, 3]) != 0
    for parts in _ids(router(x[distinct])):
        assert parts in ([0, 2, 4], [1, 3, 5])


SPECIAL = [0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 1e-38, -1e-38, 1.0, -1.0, 3.4e38, -3.4e38]


@examples
@hypothesis.given(
    rows=st.integers(1, 40).flatmap(
        lambda width: st.lists(
            st.lists(
                st.one_of(st.sampled_from(SPECIAL), st.floats(allow_nan=False, width=32)),
                min_size=width,
                max_size=width,
            ),
            min_size=1,
            max_size=4,
        )
    ),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    data=st.data(),
)
def test_greatest_is_a_stable_sort(rows: list[list[float]], dtype: torch.dtype, data: st.DataObject) -> None:
    scores = torch.from_numpy(np.array(rows, dtype=np.float64)).to(dtype)
    k = data.draw(st.integers(1, scores.shape[1]))
    values = scores.tolist()
    expected = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in values]
    found = greatest(scores, k)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_greatest_over_thousands_of_parts_with_many_ties() -> None:
    scores = torch.randint(-3, 4, (5, 3000)).float() / 7
    expected = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    assert torch.equal(greatest(scores, 3000), expected)
    assert torch.equal(greatest(scores, 17), expected[:, :17])


def test_greatest_of_no_token() -> None:
    assert greatest(torch.zeros(0, 5), 2).shape == (0, 2)


# --- gates ----------------------------------------------------------------------------------------------

PROBABILITIES = [0.4, 0.3, 0.2, 0.1]
TWO = torch.tensor([0.4, 0.3])
THREE = torch.tensor([0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("options", "on_two", "on_three"),
    [
        ({}, TWO, THREE),
        ({"scale": 2.5}, 2.5 * TWO, 2.5 * THREE),
        ({"scale": -1.0}, -TWO, -THREE),
        ({"normalize": True}, TWO / 0.7, THREE / 0.9),
        ({"normalize": True, "scale": 3.0}, 3 * TWO / 0.7, 3 * THREE / 0.9),
        ({"scale": "mean-one"}, 2 * TWO / 0.7, 3 * THREE / 0.9),
        ({"normalize": True, "scale": "mean-one"}, 2 * TWO / 0.7, 3 * THREE / 0.9),
    ],
)
def test_gate_options(options: dict[str, Any], on_two: Tensor, on_three: Tensor) -> None:
    logits = [[math.log(q) for q in PROBABILITIES]]
    for p, expected in ((0.5, on_two), (0.8, on_three)):
        number = len(expected)
        for router in (_top_k(4, number, **options), _top_p(4, p, **options)):
            routes = _route(router, logits)
            assert routes.parts_per_token().tolist() == [number]
            torch.testing.assert_close(routes.gates[0, :number], expected)
            assert not routes.gates[0, number:].any()
            # Options touch the gates alone: losses and choice see the raw probabilities.
            torch.testing.assert_close(routes.affinities, torch.tensor([PROBABILITIES]))


def test_mean_one_counts_each_tokens_own_parts() -> None:
    routes = _route(_top_p(8, 0.6, scale="mean-one"), 3 * torch.randn(30, 8))
    assert len(routes.parts_per_token().unique()) > 2
    torch.testing.assert_close(routes.gates.sum(-1), routes.parts_per_token().float())


@pytest.mark.parametrize("make", [lambda: _top_k(3, 1), lambda: _top_p(3, 0.3)])
def test_gates_carry_the_gradient_of_the_softmax_over_all_parts(make: Callable[[], Router]) -> None:
    """d p_0 / d logit_j = p_0 ([j = 0] - p_j)."""
    router = make()
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    with torch.no_grad():
        router.get_parameter("weight").copy_(torch.eye(3))
    x = probabilities.log()[None].requires_grad_()
    routes = router(x)
    assert _ids(routes) == [[0]]
    (gradient,) = torch.autograd.grad(routes.gates.sum(), x)
    expected = 0.6 * (torch.tensor([1.0, 0.0, 0.0]) - probabilities)
    torch.testing.assert_close(gradient[0], expected)


def test_leading_shape_is_flattened_in_order() -> None:
    router = TopK(5, 4, 2)
    x = torch.randn(2, 3, 5)
    routes, flat = router(x), router(x.reshape(6, 5))
    assert routes.num_tokens == 6
    assert torch.equal(routes.affinities, flat.affinities)
    assert _ids(routes) == _ids(flat)


# --- dtypes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **o: TopK(16, 8, 3, **o), lambda **o: TopP(16, 8, 0.6, **o)])
class TestRoutingDtype:
    def test_float32_is_not_touched_by_autocast(self, make: Callable[..., Router]) -> None:
        router, x = make(), torch.randn(20, 16)
        plain = router(x)
        with torch.autocast("cpu", torch.bfloat16):
            inside = router(x)
        assert inside.affinities.dtype == torch.float32
        assert torch.equal(inside.affinities, plain.affinities)
        assert torch.equal(inside.gates, plain.gates)

    def test_float32_scores_of_bfloat16_tokens(self, make: Callable[..., Router]) -> None:
        router = make().to(torch.bfloat16)
        x = torch.randn(20, 16).to(torch.bfloat16)
        routes = router(x)
        expected = torch.softmax(x.float() @ router.get_parameter("weight").float().T, -1)
        assert routes.affinities.dtype == torch.float32
        torch.testing.assert_close(routes.affinities, expected)

    def test_float64_stays(self, make: Callable[..., Router]) -> None:
        assert make().double()(torch.randn(3, 16).double()).affinities.dtype == torch.float64

    def test_activation_rounds_logits_and_probabilities_to_bfloat16(
        self, make: Callable[..., Router]
    ) -> None:
        router = make(routing_dtype="activation").to(torch.bfloat16)
        with torch.no_grad():
            router.get_parameter("weight").normal_()
        x = torch.randn(20, 16).to(torch.bfloat16)
        exact = x.double() @ router.get_parameter("weight").double().T
        logits = exact.to(torch.bfloat16)
        routes = router(x)
        assert routes.affinities.dtype == routes.gates.dtype == torch.bfloat16
        assert routes.logits is not None
        # Sums of 16 products: half a unit in the last of 8 bits, and float32's own rounding.
        torch.testing.assert_close(routes.logits.double(), exact, rtol=2**-8, atol=1e-5)
        assert (routes.logits == logits).double().mean() > 0.95
        probabilities = torch.softmax(routes.logits.double(), -1)
        torch.testing.assert_close(routes.affinities.double(), probabilities, rtol=2**-8, atol=1e-6)


def test_a_tie_in_bfloat16_only() -> None:
    """1 and 1.001 are one number in bfloat16, so only routing in float32 sees that part 1 is greater."""
    choice = {}
    for dtype in ("float32", "activation"):
        router = TopK(1, 3, 1, routing_dtype=dtype)
        with torch.no_grad():
            router.weight.copy_(torch.tensor([[1.0], [1.001], [0.5]]))
        choice[dtype] = _ids(router(torch.ones(1, 1, dtype=torch.bfloat16)))
    assert choice == {"float32": [[1]], "activation": [[0]]}


def test_strictness_in_bfloat16() -> None:
    router = TopP(4, 4, 0.5, routing_dtype="activation").to(torch.bfloat16)
    with torch.no_grad():
        router.weight.zero_()
    assert _ids(router(torch.ones(1, 4, dtype=torch.bfloat16))) == [[0, 1, 2]]


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(8, 4, 5), "(5)"),
        (lambda: TopK(8, 4, 0), "0"),
        (lambda: TopK(8, 4, -1), "-1"),
        (lambda: TopK.Config(k=0), "0"),
        (lambda: TopK(8, 4, 2, scale=math.nan), "nan"),
        (lambda: TopK(8, 4, 2, scale=math.inf), "inf"),
        (lambda: TopP(8, 4, 0.0), "0.0"),
        (lambda: TopP(8, 4, -0.5), "-0.5"),
        (lambda: TopP(8, 4, 1.5), "1.5"),
        (lambda: TopP(8, 4, math.nan), "nan"),
        (lambda: TopP.Config(p=2.0), "2.0"),
        (lambda: TopP(8, 4, 0.5, max_parts=0), "0"),
        (lambda: TopP(8, 4, 0.5, max_parts=5), "(5)"),
        (lambda: TopP(8, 4, 0.5, scale=-math.inf), "-inf"),
        (lambda: TopP.Config(p=0.25, assumed_parts=0.5), "0.5"),
        (lambda: TopK(8, 4, 2, bias_step=-0.1), "-0.1"),
        (lambda: TopP(8, 4, 0.5, bias_step=math.inf), "inf"),
    ],
)
def test_refusals_are_one_line_that_names_the_value(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(RecipeError) as refused:
        make()
    assert "\n" not in refused.value.message
    assert words in refused.value.message


def test_unknown_words_are_refused() -> None:
    """Asked past the shape hook's own check of literals, which would refuse first under the tests."""
    for field, value, words in (
        ("scale", "mean-two", "mean-one"),
        ("routing_dtype", "float8", "routing_dtype"),
        ("scores", "tanh", "softmax, sigmoid"),
    ):
        config = TopK.Config(k=1)
        object.__setattr__(config, field, value)
        with pytest.raises(RecipeError, match=words):
            config.__post_init__()


def test_config_builds_what_it_says() -> None:
    top_k = TopK.Config(k=3, normalize=True, scale=2.0, routing_dtype="activation").build(8, 5)
    assert (top_k.k, top_k.num_parts, top_k.normalize, top_k.scale) == (3, 5, True, 2.0)
    assert (top_k.routing_dtype, top_k.weight.shape) == ("activation", (5, 8))
    top_p = TopP.Config(p=0.3, max_parts=2, normalize=True, scale="mean-one").build(8, 5)
    assert (top_p.p, top_p.max_parts, top_p.normalize, top_p.scale) == (0.3, 2, True, "mean-one")
    assert TopP.Config(p=0.3).num_active_parts(16) == 2.0
    assert TopP.Config(p=0.3, max_parts=1).num_active_parts(16) == 1.0
