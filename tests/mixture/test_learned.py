"""Sigmoid scores, and the bias of loss-free balancing: it changes the choice and never a gate."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from expertise.mixture import Routes, TopK, TopP
from expertise.mixture.routers.learned import LearnedRouter

PROBABILITIES = [0.4, 0.3, 0.2, 0.1]
LOGITS = [[math.log(q) for q in PROBABILITIES]]

Make = Callable[..., LearnedRouter]
both = pytest.mark.parametrize(
    "make", [lambda **o: TopK(4, 4, 2, **o), lambda **o: TopP(4, 4, 0.5, **o)], ids=["top_k", "top_p"]
)


def _route(router: LearnedRouter, logits: Sequence[Sequence[float]], bias: Sequence[float] = ()) -> Routes:
    """Routes for tokens with these logits: the centroids become unit vectors."""
    with torch.no_grad():
        router.weight.copy_(torch.eye(router.num_parts))
        if bias:
            assert router.bias is not None
            router.bias.copy_(torch.tensor(bias))
    routes: Routes = router(torch.tensor(logits))
    return routes


def _ids(routes: Routes) -> list[int]:
    assert routes.part_ids is not None
    return routes.part_ids[0, : int(routes.parts_per_token()[0])].tolist()


# --- bias -----------------------------------------------------------------------------------------------


def test_a_bias_changes_the_choice_and_never_the_gate() -> None:
    routes = _route(TopK(4, 4, 2, bias_step=0.1), LOGITS, [0, 0, 0, 0.25])
    # 0.1 + 0.25 lies between 0.4 and 0.3: part 3 comes second, with its own probability as gate.
    assert _ids(routes) == [0, 3]
    torch.testing.assert_close(routes.gates, torch.tensor([[0.4, 0.1]]))
    torch.testing.assert_close(routes.affinities, torch.tensor([PROBABILITIES]))


def test_normalised_gates_are_of_probabilities_too() -> None:
    routes = _route(TopK(4, 4, 2, normalize=True, bias_step=0.1), LOGITS, [0, 0, 0, 0.25])
    torch.testing.assert_close(routes.gates, torch.tensor([[0.8, 0.2]]))


@pytest.mark.parametrize(
    ("p", "expected"),
    # In the order 3, 0, 1, 2 the true mass is 0.1, 0.5, 0.8, 1; score plus bias would pass any p at once.
    [(0.05, [3]), (0.15, [3, 0]), (0.45, [3, 0]), (0.55, [3, 0, 1]), (0.85, [3, 0, 1, 2])],
)
def test_top_p_cumulates_true_probability_in_biased_order(p: float, expected: list[int]) -> None:
    routes = _route(TopP(4, 4, p, bias_step=0.1), LOGITS, [0, 0, 0, 0.9])
    assert _ids(routes) == expected
    torch.testing.assert_close(routes.gates[0, : len(expected)], torch.tensor(PROBABILITIES)[expected])


@both
def test_a_bias_of_zero_is_no_bias(make: Make) -> None:
    x = torch.randn(50, 4)
    plain, biased = make(), make(bias_step=0.1)
    biased.load_state_dict({**plain.state_dict(), "bias": torch.zeros(4)})
    first, second = plain(x), biased(x)
    assert first.part_ids is not None
    assert second.part_ids is not None
    assert torch.equal(first.part_ids, second.part_ids)
    assert torch.equal(first.gates, second.gates)


@both
def test_the_bias_is_a_saved_buffer_without_gradient(make: Make) -> None:
    router = make(bias_step=0.1)
    assert set(router.state_dict()) == {"weight", "bias"}
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    assert set(make().state_dict()) == {"weight"}
    router.rebalance(torch.tensor([4, 0, 0, 0]))
    assert router.bias is not None
    assert not router.bias.requires_grad
    other = make(bias_step=0.1)
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.get_buffer("bias"), router.bias)
    router(torch.randn(9, 4)).gates.sum().backward()
    assert router.bias.grad is None


@pytest.mark.parametrize(
    ("load", "signs"),
    [
        ([4, 1, 1, 2], [-1, 1, 1, 0]),
        ([3, 3, 3, 3], [0, 0, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0.5, 0.1, 0.3, 0.1], [-1, 1, -1, 1]),
        # Differences that float32 cannot tell from none.
        ([2**30 + 1, 2**30, 2**30, 2**30 - 1], [-1, 0, 0, 1]),
    ],
)
def test_the_bias_moves_by_a_fixed_step_against_the_load(load: list[float], signs: list[int]) -> None:
    router = TopK(4, 4, 2, bias_step=0.25)
    router.rebalance(torch.tensor(load))
    assert router.bias is not None
    assert router.bias.tolist() == [0.25 * sign for sign in signs]
    before = router.bias.clone()
    router.rebalance(torch.tensor(load))
    assert torch.equal(router.bias, 2 * before)


def test_a_router_without_bias_stays_as_it_is() -> None:
    router = TopK(4, 4, 2)
    before = router.weight.clone()
    router.rebalance(torch.tensor([4, 0, 0, 0]))
    assert router.bias is None
    assert torch.equal(router.weight, before)


def test_a_bias_below_one_step_of_bfloat16_still_decides() -> None:
    """Two equal scores of 0.5 in bfloat16, whose next number is 0.5039."""
    router = TopK(1, 2, 1, bias_step=1e-4, routing_dtype="activation")
    with torch.no_grad():
        router.weight.zero_()
    router.rebalance(torch.tensor([1, 0]))
    routes = router(torch.ones(1, 1, dtype=torch.bfloat16))
    assert _ids(routes) == [1]
    assert routes.gates.dtype == torch.bfloat16


def test_rebalancing_evens_out_what_one_part_has_taken() -> None:
    router = TopK(8, 8, 2, bias_step=0.005)
    torch.nn.init.normal_(router.weight, std=0.2)
    x = torch.randn(256, 8) + 2 * router.weight.detach()[3]  # everybody likes part 3
    busiest = []
    for _ in range(150):
        counts = router(x).chosen().sum(0)
        busiest.append(float(counts.max() / counts.double().mean()))
        router.rebalance(counts)
    assert busiest[0] > 2
    assert max(busiest[-5:]) < 1.5


@both
def test_words_may_be_any_equal_string(make: Make) -> None:
    """A recipe's words are read from a file: they are equal to the source's, not the same objects."""
    x = torch.randn(5, 4, dtype=torch.bfloat16)
    words = {"routing_dtype": "float32", "scores": "softmax", "scale": "mean-one"}
    read = {key: "".join(list(word)) for key, word in words.items()}
    literal, found = make(**words), make(**read)
    found.load_state_dict(literal.state_dict())
    assert torch.equal(literal(x).gates, found(x).gates)
    assert found(x).gates.dtype == torch.float32


# --- sigmoid scores ---------------------------------------------------------------------------------------


def test_sigmoid_scores_are_gates_that_do_not_compete() -> None:
    logits = [[2.0, -1.0, 0.0, 1.0]]
    routes = _route(TopK(4, 4, 2, scores="sigmoid"), logits)
    scores = 1 / (1 + torch.exp(-torch.tensor(logits)))
    assert _ids(routes) == [0, 3]
    torch.testing.assert_close(routes.gates, scores[:, [0, 3]])
    # What losses see are probabilities: the scores divided by their sum.
    torch.testing.assert_close(routes.affinities, scores / scores.sum())
    torch.testing.assert_close(routes.logits, torch.tensor(logits))


@pytest.mark.parametrize(("p", "number"), [(0.3, 1), (0.4, 2), (0.7, 3), (0.95, 4)])
def test_top_p_of_sigmoid_scores_goes_by_their_share(p: float, number: int) -> None:
    """Scores .88, .73, .5, .27 share a sum of 2.38: mass .37, .68, .89, 1."""
    routes = _route(TopP(4, 4, p, scores="sigmoid"), [[2.0, -1.0, 0.0, 1.0]])
    assert _ids(routes) == [0, 3, 2, 1][:number]


def test_scores_that_all_vanish_still_share_a_probability() -> None:
    routes = _route(TopP(4, 4, 0.5, scores="sigmoid"), [[-300.0, -301.0, -400.0, -400.0]])
    torch.testing.assert_close(routes.affinities.sum(), torch.tensor(1.0))
    assert _ids(routes) == [0]
    assert torch.isfinite(routes.gates).all()


@both
def test_sigmoid_scores_learn(make: Make) -> None:
    router = make(scores="sigmoid")
    routes = router(torch.randn(6, 4))
    gradients = [
        torch.autograd.grad(v.square().sum(), router.weight, retain_graph=True)[0] for v in _both(routes)
    ]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def _both(routes: Routes) -> list[Tensor]:
    return [routes.gates, routes.affinities]
