"""Small records of who did what, built from plain lists."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from expertise.mixture import Routes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def sparse_routes() -> Callable[..., Routes]:
    """`(affinities, chosen parts of each token) -> Routes` whose gates are the chosen affinities."""

    def make(affinities: Sequence[Sequence[float]] | Tensor, chosen: Sequence[Sequence[int]]) -> Routes:
        table = affinities if isinstance(affinities, Tensor) else torch.tensor(affinities)
        slots = max(len(parts) for parts in chosen)
        ids = torch.tensor([[*parts, *[-1] * (slots - len(parts))] for parts in chosen])
        gates = torch.where(ids >= 0, table.gather(1, ids.clamp(min=0)), 0.0)
        counts = torch.tensor([len(parts) for parts in chosen])
        return Routes(gates=gates, affinities=table, part_ids=ids, counts=counts)

    return make


@pytest.fixture
def random_affinities() -> Callable[..., Tensor]:
    """`(tokens, parts, seed=0) -> probabilities`."""

    def make(num_tokens: int, num_parts: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.softmax(torch.randn(num_tokens, num_parts, generator=generator), dim=-1)

    return make
