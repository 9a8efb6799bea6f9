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

FIELDS: dict[str, Any] = {"k": 2, "p": 0.5, "num_parts": 6, "hidden": 16, "rank": 4}
"""A value for each field without a default of any `Config`."""

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


def _ranked(u: Tensor, router: Any) -> tuple[list[Tensor], list[int]]:
    """DeepSeekMoE Eq. 11, Dynamic MoE Eq. 1: softmax of u . e_i; parts from the most probable one."""
    exponentials = torch.stack([torch.exp((u * centroid).sum()) for centroid in router.weight])
    probabilities = list(exponentials / exponentials.sum())
    return probabilities, sorted(range(len(probabilities)), key=lambda i: (-probabilities[i].item(), i))


def _with_options(chosen: list[int], probabilities: list[Tensor], router: Any) -> Weights:
    gates = [probabilities[i] for i in chosen]
    if router.normalize or router.scale == "mean-one":
        total = torch.stack(gates).sum()
        gates = [gate / total for gate in gates]
    factor = len(chosen) if router.scale == "mean-one" else router.scale
    return [(part, gate * factor) for part, gate in zip(chosen, gates, strict=True)]


def _top_k(u: Tensor, router: Any) -> Weights:
    """DeepSeekMoE Eqs. 9-10: the k most probable."""
    probabilities, ranking = _ranked(u, router)
    return _with_options(ranking[: router.k], probabilities, router)


def _top_p(u: Tensor, router: Any) -> Weights:
    """Dynamic MoE §2.2: through the part at which the cumulated probability first exceeds p."""
    probabilities, ranking = _ranked(u, router)
    chosen: list[int] = []
    for part in ranking:
        chosen.append(part)
        if sum(probabilities[i].item() for i in chosen) > router.p or len(chosen) == router.max_parts:
            break
    return _with_options(chosen, probabilities, router)


ROUTERS_BY_HAND: dict[str, Callable[[Tensor, Any], Weights]] = {"top_k": _top_k, "top_p": _top_p}


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
            routes = [route_of(u, mixture.router) for u in tokens]
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
        built_parts = _config_of(PARTS[parts], **options).build(dim)
        built_router = router and _config_of(ROUTERS[router], **options).build(dim, built_parts.num_parts)
        mixture = Mixture(built_router, built_parts, SwiGLU(dim, 12) if always else None, dispatch=dispatch)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, tensor in mixture.state_dict().items():
                spread = 1.0 if name == "router.weight" else tensor.shape[-1] ** -0.5
                # Buffers too (the scaling of low-rank parts): none may stay at 1, or forgetting it shows not.
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
        return mixture

    return make


@pytest.fixture
def routes_of() -> Callable[..., Routes]:
    """`(num_parts, weights of each token) -> Routes`: sparse routes whose gates keep their graph."""

    def make(num_parts: int, weights: Sequence[Weights]) -> Routes:
        slots = max([len(token) for token in weights], default=1)
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
