"""How to make one of each registered thing, and what it computes, written from the papers token by token.

Whoever registers a new router or kind of part adds one line to `FIELDS` (if its `Config` needs a value that
is not there) and one definition to `ROUTERS_BY_HAND` or `PARTS_BY_HAND`. Nothing here calls the library's own
dispatches, `Parts.one` or router code: only raw weights are read.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expertise.mixture import PARTS, ROUTERS, Mixture, Routes, SwiGLU

FIELDS: dict[str, Any] = {
    "k": 2,
    "p": 0.5,
    "num_parts": 6,
    "hidden": 16,
    "rank": 4,
    "context_dim": 3,
    "vocab_size": 11,
}
"""A value for each field without a default of any `Config`, and the number of token ids."""

Weights = list[tuple[int, Tensor]]
"""(part, gate) of one token."""


def _config_of(cls: Any, **given: Any) -> Any:
    """The class's `Config` with every required field filled in, and the given ones that it has."""
    values = {}
    for field in dataclasses.fields(cls.Config):
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if field.name not in FIELDS:
                pytest.fail(f"{cls.__name__}.Config needs {field.name!r}: add it to FIELDS in {__file__}")
            values[field.name] = FIELDS[field.name]
    return cls.Config(**values)


# --- routers: gates of one token from its vector u ------------------------------------------------------


def _scored(u: Tensor, router: Any) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """DeepSeekMoE Eq. 11, Dynamic MoE Eq. 1: softmax of u . e_i, or the sigmoid of each.

    Also the share of each in the sum of all, and the parts by score plus bias (arXiv 2408.15664, Eq. 2).
    With hidden layers u is what they make of it.
    """
    for layer in range(len(router.hidden)):
        linear = router.trunk[2 * layer]
        u = (linear.weight @ u + linear.bias).clamp(min=0)
    logits = [(u * centroid).sum() for centroid in router.weight]
    raw = [torch.exp(logit) for logit in logits]
    if router.scores == "sigmoid":
        raw = [1 / (1 + torch.exp(-logit)) for logit in logits]
    shares = [score / torch.stack(raw).sum() for score in raw]
    if router.scores == "softmax":
        raw = shares
    bias = [0.0] * len(raw) if router.bias is None else router.bias.tolist()
    return raw, shares, sorted(range(len(raw)), key=lambda i: (-(raw[i].item() + bias[i]), i))


def _with_options(chosen: list[int], scores: list[Tensor], router: Any) -> Weights:
    gates = [scores[i] for i in chosen]
    if router.normalize or router.scale == "mean-one":
        total = torch.stack(gates).sum()
        gates = [gate / total for gate in gates]
    factor = len(chosen) if router.scale == "mean-one" else router.scale
    return [(part, gate * factor) for part, gate in zip(chosen, gates, strict=True)]


def _top_k(u: Tensor, router: Any, context: None) -> Weights:
    """DeepSeekMoE Eqs. 9-10: the first k; no bias in a gate."""
    raw, _, ranking = _scored(u, router)
    return _with_options(ranking[: router.k], raw, router)


def _top_p(u: Tensor, router: Any, context: None) -> Weights:
    """Dynamic MoE §2.2: through the part at which the cumulated true probability first exceeds p."""
    raw, shares, ranking = _scored(u, router)
    chosen: list[int] = []
    for part in ranking:
        chosen.append(part)
        if sum(shares[i].item() for i in chosen) > router.p or len(chosen) == router.max_parts:
            break
    # A centroid beyond the parts stands for nothing.
    return [(part, gate) for part, gate in _with_options(chosen, raw, router) if part < router.num_parts]


def _hash(u: Tensor, router: Any, context: Tensor) -> Weights:
    """The part of the token's id, with gate 1, whatever the token is."""
    return [(int(router.table[int(context)]), u.new_ones(()))]


def _context(u: Tensor, router: Any, context: Tensor) -> Weights:
    """PSEC §4.2: every part, its weight from an MLP over the context vector."""
    values = context.to(u.dtype)
    if router.normalize:
        values = values / (values.pow(2).mean() + torch.finfo(context.dtype).eps).sqrt()
    weights, biases = ([p for p in router.parameters() if p.ndim == n] for n in (2, 1))
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        values = weight @ (values if layer == 0 else values.clamp(min=0)) + bias
    if router.squash == "softmax":
        values = torch.exp(values) / torch.exp(values).sum()
    if router.squash == "sigmoid":
        values = 1 / (1 + torch.exp(-values))
    return list(enumerate(values))


def _fixed(u: Tensor, router: Any, context: None) -> Weights:
    """Every part, with the same weight for every token."""
    return list(enumerate(router.values))


ROUTERS_BY_HAND: dict[str, Callable[[Tensor, Any, Any], Weights]] = {
    "top_k": _top_k,
    "top_p": _top_p,
    "hash": _hash,
    "context": _context,
    "fixed": _fixed,
}


def _context_of(router: Any, x: Tensor) -> Tensor | None:
    """What a router wants beside x: nothing, an id or a vector for each token."""
    leading, number = x.shape[:-1], x[..., 0].numel()
    if router is None or router.context_kind == "nothing":
        return None
    if router.context_kind == "token ids":
        return (5 * torch.arange(number) + 3).remainder(FIELDS["vocab_size"]).view(leading)
    vectors = torch.randn(number, FIELDS["context_dim"], generator=torch.Generator().manual_seed(3))
    # Numbers that bfloat16 holds too, so that a loop in float32 sees the same.
    return vectors.to(torch.bfloat16).float().view(*leading, FIELDS["context_dim"])


# --- parts: part i applied to one vector u ----------------------------------------------------------------


def _swiglu(gate_up: Tensor, down: Tensor, u: Tensor) -> Tensor:
    hidden = down.shape[1]
    gate, up = gate_up[:hidden] @ u, gate_up[hidden:] @ u
    return down @ (gate / (1 + torch.exp(-gate)) * up)


PARTS_BY_HAND: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "swiglu": lambda parts, i, u: _swiglu(parts.gate_up[i], parts.down[i], u),
    "low_rank": lambda parts, i, u: parts.scaling[i] * (parts.lora_B[i] @ (parts.lora_A[i] @ u)),
}


def _entry(table: dict[str, Any], family: Any, thing: nn.Module) -> Any:
    name = next(name for name in family if family[name] is type(thing))
    if name not in table:
        pytest.fail(f"{family.family} {name!r} is registered without a definition by hand: see {__file__}")
    return table[name]


# --- fixtures -----------------------------------------------------------------------------------------------


@pytest.fixture
def config_of() -> Callable[..., Any]:
    """`(class, **given) -> its Config` with every required field filled in."""
    return _config_of


@pytest.fixture
def by_hand() -> Callable[..., Tensor]:
    """`(mixture, x, routes=None) -> y`: the sum, one token and one part at a time."""

    def compute(mixture: Mixture, x: Tensor, routes: Sequence[Weights] | None = None) -> Tensor:
        part_of = _entry(PARTS_BY_HAND, PARTS, mixture.parts)
        tokens = list(x.reshape(-1, x.shape[-1]))
        if routes is None:
            route_of = _entry(ROUTERS_BY_HAND, ROUTERS, mixture.router)
            context = _context_of(mixture.router, x)
            width = () if context is None or context.dtype == torch.int64 else context.shape[-1:]
            contexts = [None] * len(tokens) if context is None else list(context.reshape(-1, *width))
            routes = [route_of(u, mixture.router, c) for u, c in zip(tokens, contexts, strict=True)]
        rows = []
        for u, weights in zip(tokens, routes, strict=True):
            y = u.new_zeros(mixture.parts.out_features)
            for part, gate in weights:
                y = y + gate * part_of(mixture.parts, part, u)
            if mixture.always is not None:
                y = y + _swiglu(mixture.always.gate_up.weight, mixture.always.down.weight, u)
            rows.append(y)
        if not rows:
            return x.new_zeros(*x.shape[:-1], mixture.parts.out_features)
        return torch.stack(rows).reshape(*x.shape[:-1], -1)

    return compute


@pytest.fixture
def context_of() -> Callable[..., Tensor | None]:
    """`(router, x) -> what the router wants beside x`, the same that `by_hand` takes."""
    return _context_of


@pytest.fixture
def make_mixture() -> Callable[..., Mixture]:
    """`(router, parts, dispatch=…, dim=…, always=…, **options) -> Mixture` with weights of ordinary size."""

    def make(
        router: str | None,
        parts: str,
        *,
        dispatch: str = "auto",
        dim: int = 8,
        always: bool = True,
        **options: Any,
    ) -> Mixture:
        # A router's hidden layers, a list, are not the parts' hidden width, a number.
        widths = options.pop("hidden", FIELDS["hidden"])
        of_router, of_parts = (widths, FIELDS["hidden"]) if isinstance(widths, list) else (None, widths)
        built_parts = _config_of(PARTS[parts], **options, hidden=of_parts).build(dim)
        if router == "context":
            of_router = of_router or [7]
        given = {"context_dim": FIELDS["context_dim"], "hidden": of_router or []}
        config = router and _config_of(ROUTERS[router], **options, **given)
        built_router = config and config.build(dim, built_parts.num_parts, FIELDS["vocab_size"])
        mixture = Mixture(built_router, built_parts, SwiGLU(dim, 12) if always else None, dispatch=dispatch)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, tensor in mixture.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                spread = 1.0 if name == "router.weight" else tensor.shape[-1] ** -0.5
                # Buffers too (the scaling of low-rank parts): none may stay at 1, or forgetting it shows not.
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
        return mixture

    return make


@pytest.fixture
def routes_of() -> Callable[..., Routes]:
    """`(num_parts, weights of each token) -> Routes`: sparse routes whose gates keep their graph."""

    def make(num_parts: int, weights: Sequence[Weights]) -> Routes:
        slots = max([1, *(len(token) for token in weights)])
        padded = [[*token, *[(-1, torch.zeros(()))] * (slots - len(token))] for token in weights]
        gates = [torch.stack([gate for _, gate in token]) for token in padded]
        return Routes(
            gates=torch.stack(gates) if gates else torch.zeros(0, slots),
            affinities=torch.full((len(weights), num_parts), 1 / num_parts),
            part_ids=torch.tensor([[i for i, _ in token] for token in padded], dtype=torch.int64).view(
                -1, slots
            ),
            counts=torch.tensor([len(token) for token in weights], dtype=torch.int64),
        )

    return make
