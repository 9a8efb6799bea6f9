"""Every router with every kind of part through every dispatch equals a loop over tokens and raw weights."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.mixture import PARTS, ROUTERS, Hash, Mixture, Routes
from expertise.mixture.dispatch import DISPATCHES
from expertise.mixture.parts.configs import PartsConfig
from expertise.mixture.routers.configs import RouterConfig

OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalize": True},
    {"scale": "mean-one"},
    {"scale": 2.5},
    {"scores": "sigmoid"},
    {"bias_step": 0.1},
    {"scores": "sigmoid", "bias_step": 0.2, "normalize": True},
    {"squash": "softmax"},
    {"squash": "sigmoid"},
    {"hidden": [5]},
    {"hidden": [5, 4], "scores": "sigmoid", "bias_step": 0.2},
    {"nothing": True},
    {"nothing": True, "hidden": [5], "scale": 1.5, "max_parts": 3},
    {"learn": True},
]


def _has(cls: Any, options: dict[str, Any]) -> bool:
    return set(options) <= {field.name for field in dataclasses.fields(cls.Config)}


ROUTER_CASES = [
    pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
    for name in ROUTERS
    for options in OPTIONS
    if _has(ROUTERS[name], options)
]
routers = pytest.mark.parametrize(("router", "options"), ROUTER_CASES)
router_names = pytest.mark.parametrize("router", list(ROUTERS))
kinds = pytest.mark.parametrize("kind", list(PARTS))
dispatches = pytest.mark.parametrize("dispatch", ["auto", *DISPATCHES])

Make = Callable[..., Mixture]
ByHand = Callable[..., Tensor]


Ask = Callable[..., Tensor]


@pytest.fixture
def ask(context_of: Callable[..., Any]) -> Ask:
    """`(mixture, x) -> y`, with the context that the mixture's router wants."""
    return lambda mixture, x: mixture(x, context_of(mixture.router, x))


def learnt(mixture: Mixture) -> dict[str, Tensor]:
    """Parameters that gradients go to."""
    return {name: parameter for name, parameter in mixture.named_parameters() if parameter.requires_grad}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _gradients(y: Tensor, upstream: Tensor | None, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name; without `upstream` that of `y.sum()`, an expanded tensor."""
    scalar = y.sum() if upstream is None else (y * upstream).sum()
    if not scalar.requires_grad:  # no token: nothing was computed
        return {name: torch.zeros_like(tensor) for name, tensor in inputs.items()}
    found = torch.autograd.grad(scalar, list(inputs.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(inputs, found, strict=True))


def _assert_equal(
    actual: Tensor, expected: Tensor, inputs: dict[str, Tensor], upstream: Tensor | None
) -> None:
    """Outputs within 1e-5, gradients with respect to every input within 1e-4."""
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    ours = _gradients(actual, upstream, inputs)
    theirs = _gradients(expected, upstream, inputs)
    for name in inputs:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


X_SHAPES = {
    "one token": lambda: _random(1, 8),
    "no token": lambda: _random(0, 8),
    "batch of sequences": lambda: _random(2, 3, 8),
    "batch of none": lambda: _random(2, 0, 8),
    "transposed": lambda: _random(8, 9).T,
    "strided": lambda: _random(9, 16)[:, ::2],
    "expanded": lambda: _random(1, 8).expand(5, 8),
}


@routers
@kinds
@dispatches
def test_mixture_equals_loop(
    router: str,
    options: dict[str, Any],
    kind: str,
    dispatch: str,
    make_mixture: Make,
    by_hand: ByHand,
    ask: Ask,
) -> None:
    mixture = make_mixture(router, kind, dispatch=dispatch, **options)
    x = _random(17, 8).requires_grad_()
    inputs = {"x": x, **learnt(mixture)}
    _assert_equal(ask(mixture, x), by_hand(mixture, x), inputs, _random(17, 8, seed=1))


@router_names
@kinds
@dispatches
@pytest.mark.parametrize("x", [pytest.param(make, id=name) for name, make in X_SHAPES.items()])
def test_any_shape_and_layout_of_tokens(
    router: str,
    kind: str,
    dispatch: str,
    x: Callable[[], Tensor],
    make_mixture: Make,
    by_hand: ByHand,
    ask: Ask,
) -> None:
    mixture = make_mixture(router, kind, dispatch=dispatch)
    tokens = x().requires_grad_()
    y = ask(mixture, tokens)
    assert y.shape == tokens.shape
    assert y.dtype == tokens.dtype
    inputs = {"x": tokens, **learnt(mixture)}
    _assert_equal(y, by_hand(mixture, tokens), inputs, _random(*y.shape, seed=1))


@router_names
@kinds
@dispatches
@pytest.mark.parametrize(("dim", "width"), [(10, 53), (9, 3), (53, 5)])
def test_unaligned_widths(
    router: str,
    kind: str,
    dispatch: str,
    dim: int,
    width: int,
    make_mixture: Make,
    by_hand: ByHand,
    ask: Ask,
) -> None:
    mixture = make_mixture(router, kind, dispatch=dispatch, dim=dim, hidden=width, rank=width)
    x = _random(11, dim, seed=2).requires_grad_()
    y = ask(mixture, x)
    inputs = {"x": x, **learnt(mixture)}
    _assert_equal(y, by_hand(mixture, x), inputs, _random(11, dim, seed=3))


@router_names
@kinds
@dispatches
def test_gradient_of_a_plain_sum(
    router: str, kind: str, dispatch: str, make_mixture: Make, by_hand: ByHand, ask: Ask
) -> None:
    """Without `always`, so that the expanded gradient of `y.sum()` reaches the dispatch as it is."""
    mixture = make_mixture(router, kind, dispatch=dispatch, always=False)
    x = _random(12, 8).requires_grad_()
    inputs = {"x": x, **learnt(mixture)}
    _assert_equal(ask(mixture, x), by_hand(mixture, x), inputs, None)


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("context", "fixed")])
@kinds
@dispatches
@pytest.mark.parametrize("favoured", [[2], [0, 5], [5]])
def test_parts_that_nobody_takes(
    router: str,
    kind: str,
    dispatch: str,
    favoured: list[int],
    make_mixture: Make,
    by_hand: ByHand,
    ask: Ask,
) -> None:
    """All tokens on the same one or two parts, at either end and in the middle."""
    mixture = make_mixture(router, kind, dispatch=dispatch, k=len(favoured), max_parts=len(favoured))
    x = _random(13, 8, seed=4)
    x[:, 0] = 1.0
    assert mixture.router is not None
    with torch.no_grad():
        if isinstance(mixture.router, Hash):
            mixture.router.table.copy_(torch.tensor(favoured).repeat(11)[:11])
        else:
            mixture.router.weight.mul_(0.1)
            mixture.router.weight[favoured, 0] += 4.0
    with mixture.recording():
        y = ask(mixture, x.requires_grad_())
    assert mixture.last_routes is not None
    taken = mixture.last_routes.chosen().any(0).nonzero().flatten().tolist()
    assert set(taken) <= set(favoured)
    inputs = {"x": x, **learnt(mixture)}
    _assert_equal(y, by_hand(mixture, x), inputs, _random(13, 8, seed=5))


# --- given routes -------------------------------------------------------------------------------------------

GIVEN: dict[str, list[list[int]]] = {
    "varying counts": [[3], [0, 5, 1], [2, 4], [5, 4, 3, 2, 1, 0], [1]],
    "tokens without a part": [[], [0, 5], [], [2]],
    "no part at all": [[], []],
    "all on one part": [[4]] * 7,
    "only the first part": [[0]] * 3,
    "only the last part": [[5]] * 3,
    "every part": [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]],
    "one token": [[1, 3]],
    "no token": [],
}


@kinds
@dispatches
@pytest.mark.parametrize("chosen", [pytest.param(parts, id=name) for name, parts in GIVEN.items()])
@pytest.mark.parametrize("upstream", ["random", "sum"])
def test_given_sparse_routes(
    kind: str,
    dispatch: str,
    chosen: Sequence[list[int]],
    upstream: str,
    make_mixture: Make,
    by_hand: ByHand,
    routes_of: Callable[..., Routes],
) -> None:
    mixture = make_mixture(None, kind, dispatch=dispatch)
    x = _random(len(chosen), 8, seed=6).requires_grad_()
    gates = _random(len(chosen), 6, seed=7).requires_grad_()
    weights = [[(i, gates[token, i]) for i in parts] for token, parts in enumerate(chosen)]
    y = mixture(x, routes=routes_of(6, weights))
    inputs = {"x": x, "gates": gates, **learnt(mixture)}
    up = _random(len(chosen), 8, seed=8) if upstream == "random" else None
    _assert_equal(y, by_hand(mixture, x, weights), inputs, up)


@kinds
@dispatches
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_given_dense_routes_with_negative_weights(
    kind: str, dispatch: str, num_tokens: int, make_mixture: Make, by_hand: ByHand
) -> None:
    mixture = make_mixture(None, kind, dispatch=dispatch)
    x = _random(num_tokens, 8, seed=9).requires_grad_()
    gates = _random(num_tokens, 6, seed=10).requires_grad_()
    assert num_tokens == 0 or {-1.0, 1.0} == set(gates.sign().flatten().tolist())
    y = mixture(x, routes=Routes.dense(gates))
    inputs = {"x": x, "gates": gates, **learnt(mixture)}
    weights = [list(enumerate(row)) for row in gates]
    _assert_equal(y, by_hand(mixture, x, weights), inputs, _random(num_tokens, 8, seed=11))


@kinds
@dispatches
def test_one_record_serves_several_layers(
    kind: str, dispatch: str, make_mixture: Make, by_hand: ByHand
) -> None:
    """PSEC: one set of weights for all layers; its gradient adds up over them, the router is not asked."""
    first, second = (make_mixture("top_k", kind, dispatch=dispatch) for _ in range(2))
    gates = _random(5, 6, seed=12).requires_grad_()
    x = _random(5, 8, seed=13).requires_grad_()
    routes = Routes.dense(gates)
    y = second(first(x, routes=routes), routes=routes)
    weights = [list(enumerate(row)) for row in gates]
    expected = by_hand(second, by_hand(first, x, weights), weights)
    inputs = {"x": x, "gates": gates, **dict(first.parts.named_parameters())}
    _assert_equal(y, expected, inputs, _random(5, 8, seed=14))


# --- other dtypes -------------------------------------------------------------------------------------------


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).norm() / expected.norm()).item()


@router_names
@kinds
@dispatches
def test_bfloat16(
    router: str, kind: str, dispatch: str, make_mixture: Make, by_hand: ByHand, ask: Ask
) -> None:
    """Routing is done in float32 on the rounded numbers, so the loop in float32 takes the same parts."""
    mixture = make_mixture(router, kind, dispatch=dispatch).to(torch.bfloat16)
    exact = copy.deepcopy(mixture).float()
    x = _random(16, 8).to(torch.bfloat16).requires_grad_()
    x_exact = x.detach().float().requires_grad_()
    y, expected = ask(mixture, x), by_hand(exact, x_exact)
    assert y.dtype == torch.bfloat16
    assert _relative_error(y, expected) < 0.02
    y.float().square().sum().backward()
    expected.square().sum().backward()
    pairs = {"x": (x, x_exact)} | {
        name: (parameter, exact.get_parameter(name)) for name, parameter in learnt(mixture).items()
    }
    for name, (ours, theirs) in pairs.items():
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        assert _relative_error(ours.grad, theirs.grad) < 0.05, name


@router_names
@kinds
@dispatches
def test_autocast(
    router: str, kind: str, dispatch: str, make_mixture: Make, by_hand: ByHand, ask: Ask
) -> None:
    """float32 weights under bfloat16 autocast: x's dtype comes out, gradients arrive in float32."""
    mixture = make_mixture(router, kind, dispatch=dispatch)
    x = _random(16, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ask(mixture, x)
    expected = by_hand(mixture, x)
    assert y.dtype == torch.float32
    assert 1e-5 < _relative_error(y, expected) < 0.02  # the lower bound: autocast did take place
    inputs = {"x": x, **learnt(mixture)}
    theirs = _gradients(expected, _random(16, 8, seed=1), inputs)
    for name, ours in _gradients(y, _random(16, 8, seed=1), inputs).items():
        assert ours.dtype == torch.float32, name
        assert _relative_error(ours, theirs[name]) < 0.05, name


@router_names
@kinds
@dispatches
def test_gradcheck(
    router: str, kind: str, dispatch: str, make_mixture: Make, context_of: Callable[..., Any]
) -> None:
    """In float64 gradients are those of finite differences, to every tensor."""
    mixture = make_mixture(router, kind, dispatch=dispatch, dim=3, num_parts=3, hidden=2, rank=2).double()
    names, parameters = zip(*learnt(mixture).items(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        context = context_of(mixture.router, x)
        tensors = dict(zip(names, values, strict=True))
        result: Tensor = torch.func.functional_call(mixture, tensors, (x, context))
        return result

    x = _random(3, 3, seed=15).double().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *parameters))


# --- the registries themselves ------------------------------------------------------------------------------


@kinds
def test_parts_count_themselves(kind: str, config_of: Callable[..., Any]) -> None:
    config = config_of(PARTS[kind])
    assert isinstance(config, PartsConfig)
    assert config.name == kind
    parts = config.build(8)
    assert parts.num_parts == config.num_parts
    assert config.num_parts * config.num_params_each(8) == sum(p.numel() for p in parts.parameters())


@router_names
def test_routers_count_themselves(router: str, config_of: Callable[..., Any]) -> None:
    config = config_of(ROUTERS[router])
    assert isinstance(config, RouterConfig)
    assert config.name == router
    built = config.build(8, 6, 11)
    assert built.num_parts == 6
    assert config.num_params(8, 6) == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert 1 <= config.num_active_parts(6) <= 6


@routers
def test_a_router_reads_what_its_options_say(
    router: str, options: dict[str, Any], config_of: Callable[..., Any]
) -> None:
    config = config_of(ROUTERS[router], **{"context_dim": 8, **options})
    built = config.build(8, 6, 11)
    assert config.num_params(8, 6) == sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert built.in_features == (8 if config.num_params(8, 6) > 6 else None)
    if ROUTERS[router].context_kind != "token ids":
        x = _random(7, 8)
        routes = built(x, x)
        assert config.has_logits() == (routes.logits is not None)
        assert (routes.num_tokens, routes.num_parts) == (7, 6)
