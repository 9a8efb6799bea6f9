"""Balance losses: perfect balance, cases worked by hand, the released formula, and where gradients flow."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.mixture import Routes, TopP
from expertise.mixture.balance import (
    device_balance,
    entropy,
    expert_balance,
    relative_load,
    token_entropy,
    z_loss,
)

Make = Callable[..., Routes]

# Token 0 takes part 0, token 1 takes both.
VARYING = ([[0.75, 0.25], [0.5, 0.5]], [[0], [0, 1]])
# Two of four parts each.
FIXED = ([[0.4, 0.3, 0.2, 0.1], [0.4, 0.1, 0.3, 0.2]], [[0, 1], [0, 2]])


def _close(actual: Tensor, expected: float | list[float] | list[list[float]]) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), check_dtype=False)


@pytest.fixture
def balanced(sparse_routes: Make) -> Routes:
    """Four tokens, two parts each, every part twice; affinities even in the mean but not token by token."""
    table = torch.full((4, 4), 0.1)
    chosen = [[0, 1], [1, 2], [2, 3], [3, 0]]
    for token, parts in enumerate(chosen):
        table[token, parts] = 0.4
    return sparse_routes(table, chosen)


def test_perfect_balance_gives_one(balanced: Routes) -> None:
    _close(relative_load(balanced), [[1.0, 1.0, 1.0, 1.0]])
    _close(expert_balance(balanced), 1.0)
    for groups in ([[0, 1], [2, 3]], [[3], [0, 2, 1]], [[0, 1, 2, 3]], [[0], [1], [2], [3]]):
        _close(device_balance(balanced, groups), 1.0)


def test_all_tokens_on_one_of_n_parts_gives_n_times_its_affinity(sparse_routes: Make) -> None:
    routes = sparse_routes([[0.7, 0.1, 0.1, 0.1]] * 3, [[0]] * 3)
    _close(relative_load(routes), [[4.0, 0.0, 0.0, 0.0]])
    _close(expert_balance(routes), 4 * 0.7)


def test_fixed_number_by_hand(sparse_routes: Make) -> None:
    """f_i = N'/(K' T) count_i = 4/(2*2) * [2, 1, 1, 0]; P = [.4, .2, .25, .15]."""
    routes = sparse_routes(*FIXED)
    _close(relative_load(routes), [[2.0, 1.0, 1.0, 0.0]])
    _close(expert_balance(routes), 2 * 0.4 + 0.2 + 0.25)


def test_varying_number_by_hand(sparse_routes: Make) -> None:
    """Each token gives 1/n: shares [1, 0] and [.5, .5]; f = 2 * [.75, .25]; P = [.625, .375]."""
    routes = sparse_routes(*VARYING)
    _close(relative_load(routes), [[1.5, 0.5]])
    _close(expert_balance(routes), 1.5 * 0.625 + 0.5 * 0.375)


def test_load_always_averages_to_one(sparse_routes: Make, random_affinities: Callable[..., Tensor]) -> None:
    routes = sparse_routes(random_affinities(4, 5), [[0], [4, 3, 2, 1, 0], [1, 2], [2, 0, 4]])
    _close(relative_load(routes).mean(), 1.0)
    _close(relative_load(Routes.dense(random_affinities(3, 5))), [[1.0] * 5])


def test_per_sequence_statistics_are_averaged_by_hand(sparse_routes: Make) -> None:
    """Sequence 0: f = [2, 0], P = [.75, .25] → 1.5. Sequence 1: f = [1, 1] → 1. Their mean is 1.25."""
    routes = sparse_routes(*VARYING)
    _close(relative_load(routes, 2), [[2.0, 0.0], [1.0, 1.0]])
    _close(expert_balance(routes, 2), 1.25)
    _close(expert_balance(routes), 1.125)


def test_sequences_are_consecutive_tokens(sparse_routes: Make) -> None:
    """Tokens 0 and 1 are one sequence, on part 0; 2 and 3 the other, on part 1: balanced only together."""
    routes = sparse_routes([[0.9, 0.1]] * 2 + [[0.1, 0.9]] * 2, [[0], [0], [1], [1]])
    _close(expert_balance(routes, 2), 2 * 0.9)
    _close(expert_balance(routes), 1.0)


def test_only_the_per_sequence_loss_is_the_same_in_micro_batches(
    sparse_routes: Make, random_affinities: Callable[..., Tensor]
) -> None:
    affinities = random_affinities(12, 4)
    chosen = [[int(i)] for i in affinities.argmax(-1)]
    whole = sparse_routes(affinities, chosen)
    halves = [sparse_routes(affinities[:6], chosen[:6]), sparse_routes(affinities[6:], chosen[6:])]
    per_sequence = torch.stack([expert_balance(half, 2) for half in halves]).mean()
    torch.testing.assert_close(per_sequence, expert_balance(whole, 4))
    over_batch = torch.stack([expert_balance(half) for half in halves]).mean()
    assert (over_batch - expert_balance(whole)).abs() > 1e-3


@pytest.mark.parametrize(("batch", "length", "num_parts", "k"), [(1, 9, 4, 1), (3, 7, 8, 3), (2, 5, 6, 6)])
@pytest.mark.parametrize("seq_aux", [True, False])
def test_equals_the_released_formula(
    batch: int,
    length: int,
    num_parts: int,
    k: int,
    seq_aux: bool,
    sparse_routes: Make,
    random_affinities: Callable[..., Tensor],
) -> None:
    """DeepSeekMoE's released code, with alpha = 1 (papers.md 1.6), values and gradients."""
    scores = random_affinities(batch * length, num_parts).requires_grad_()
    chosen = scores.detach().topk(k).indices
    if seq_aux:
        c = torch.zeros(batch, num_parts)
        c.scatter_add_(1, chosen.view(batch, -1), torch.ones(batch, length * k))
        c /= length * k / num_parts
        released = (c * scores.view(batch, length, num_parts).mean(1)).sum(1).mean()
    else:
        share_of_slots = torch.nn.functional.one_hot(chosen.flatten(), num_parts).float().mean(0)
        released = (num_parts * share_of_slots * scores.mean(0)).sum()
    ours = expert_balance(sparse_routes(scores, chosen.tolist()), batch if seq_aux else 1)
    torch.testing.assert_close(ours, released)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (ours, released)]
    torch.testing.assert_close(*gradients)


def test_gradient_flows_through_the_mean_affinity_alone(sparse_routes: Make) -> None:
    """d/dP_i = f_i, so each token's affinity gets f_i / T, whatever the gates are."""
    table = torch.tensor(FIXED[0], requires_grad=True)
    routes = sparse_routes(table, FIXED[1])
    assert not relative_load(routes).requires_grad
    (gradient,) = torch.autograd.grad(expert_balance(routes), table)
    _close(gradient, [[1.0, 0.5, 0.5, 0.0]] * 2)


def test_device_level_by_hand(sparse_routes: Make) -> None:
    """f = [2, 1, 1, 0]; P = [.4, .2, .25, .15]; mean of f and sum of P in each group."""
    routes = sparse_routes(*FIXED)
    _close(device_balance(routes, [[0, 1], [2, 3]]), 1.5 * 0.6 + 0.5 * 0.4)
    _close(device_balance(routes, [[0], [1, 2, 3]]), 2 * 0.4 + 2 / 3 * 0.6)
    _close(device_balance(routes, [[3, 0], [2, 1]]), 1.0 * 0.55 + 1.0 * 0.45)
    _close(device_balance(routes, [[0], [1], [2], [3]]), expert_balance(routes).item())


def test_device_level_against_loops(random_affinities: Callable[..., Tensor]) -> None:
    """Eqs. 15-17 over the routes of a top-p router, gradient included."""
    router = TopP(6, 8, 0.6)
    torch.nn.init.normal_(router.weight)
    routes = router(torch.randn(20, 6))
    groups = [[5, 0], [1, 2, 7], [3], [4, 6]]
    chosen = routes.chosen().tolist()
    terms = []
    for group in groups:
        loads = [sum(8 / 20 * row[i] / sum(row) for row in chosen) for i in group]
        affinity = torch.stack([routes.affinities[t, i] for t in range(20) for i in group]).sum() / 20
        terms.append(sum(loads) / len(loads) * affinity)
    expected = torch.stack(terms).sum()
    ours = device_balance(routes, groups)
    torch.testing.assert_close(ours, expected)
    both = [torch.autograd.grad(loss, router.weight, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*both)


@pytest.mark.parametrize(
    "groups",
    [[[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3, 4]], [], [[-1, 0, 1, 2]], [[0, 1, 2, 3], []]],
    ids=["missing", "twice", "unknown", "none", "negative", "a device without parts"],
)
def test_wrong_groups_are_refused(balanced: Routes, groups: list[list[int]]) -> None:
    with pytest.raises(RecipeError, match=r"exactly once|no part|empty"):
        device_balance(balanced, groups)


@pytest.mark.parametrize("num_sequences", [3, 0, -1, 5])
def test_tokens_that_do_not_divide_are_refused(balanced: Routes, num_sequences: int) -> None:
    with pytest.raises(RecipeError, match="sequences"):
        expert_balance(balanced, num_sequences)


# --- entropy and z-loss -----------------------------------------------------------------------------------


def test_entropy_by_hand(sparse_routes: Make) -> None:
    """Even over two: ln 2; certain: 0 (0 log 0 is 0); [1/2, 1/4, 1/4]: 1.5 ln 2; whatever was chosen."""
    table = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]]
    routes = sparse_routes(table, [[0], [1], [2]])
    nat = math.log(2)
    _close(token_entropy(routes), [nat, 0.0, 1.5 * nat])
    _close(entropy(routes), 2.5 * nat / 3)


def test_entropy_lies_between_zero_and_log_of_parts(random_affinities: Callable[..., Tensor]) -> None:
    values = token_entropy(Routes.dense(random_affinities(200, 6)))
    assert 0 < values.min() < values.max() < math.log(6)
    _close(entropy(Routes.dense(torch.full((3, 6), 1 / 6))), math.log(6))


def test_descending_the_entropy_lowers_the_number_of_parts() -> None:
    router, x = TopP(8, 8, 0.5), torch.randn(64, 8)
    before = router(x)
    optimizer = torch.optim.SGD(router.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        entropy(router(x)).backward()
        optimizer.step()
    after = router(x)
    assert entropy(after) < entropy(before)
    assert after.parts_per_token().sum() < before.parts_per_token().sum()


def test_z_loss_by_hand() -> None:
    """log(1 + 1) = ln 2; log(3 + 1) = 2 ln 2; the mean of their squares is 2.5 ln² 2."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    routes = Routes(gates=torch.ones(2, 2), affinities=torch.softmax(logits, -1), logits=logits)
    _close(z_loss(routes), 2.5 * math.log(2) ** 2)


def test_z_loss_without_logits_is_refused() -> None:
    with pytest.raises(RecipeError, match="logits"):
        z_loss(Routes.dense(torch.ones(2, 2)))
