"""Loads of a step are counted over its micro-batches and all ranks, then each bias moves once."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from expertise.mixture import Hash, Mixture, Routes, SwiGLUExperts, TopK, TopP
from expertise.mixture.loss_free import LossFreeBalance

Make = Callable[..., Routes]


def _mixture(router: TopK | TopP | Hash) -> Mixture:
    return Mixture(router, SwiGLUExperts(router.num_parts, 4, 4))


def _bias(mixture: Mixture) -> list[float]:
    assert mixture.router is not None
    return mixture.router.get_buffer("bias").tolist()


def _routes(sparse_routes: Make, chosen: list[list[int]]) -> Routes:
    return sparse_routes(torch.full((len(chosen), 3), 1 / 3), chosen)


def test_a_token_that_takes_two_parts_counts_twice(sparse_routes: Make) -> None:
    """Counts 1, 2, 1 with a mean of 4/3; by shares of 1/n part 0 would have more than the mean of 1."""
    mixture = _mixture(TopP(4, 3, 0.5, bias_step=0.5))
    balance = LossFreeBalance([mixture])
    balance.begin()
    balance.count([_routes(sparse_routes, [[0], [1, 2], [1]])])
    balance.apply()
    assert _bias(mixture) == [0.5, -0.5, 0.5]


def test_micro_batches_add_up_to_one_move(sparse_routes: Make) -> None:
    whole, cut = (_mixture(TopK(4, 3, 1, bias_step=0.5)) for _ in range(2))
    chosen = [[0], [0], [1], [0], [2], [2], [2], [2]]
    balances = [LossFreeBalance([mixture]) for mixture in (whole, cut)]
    for balance in balances:
        balance.begin()
    balances[0].count([_routes(sparse_routes, chosen)])
    # Apart, the first half would push part 0 down and part 2 up.
    balances[1].count([_routes(sparse_routes, chosen[:4])])
    balances[1].count([_routes(sparse_routes, chosen[4:])])
    for balance in balances:
        balance.apply()
    assert _bias(whole) == _bias(cut) == [-0.5, 0.5, -0.5]
    balances[1].apply()
    assert _bias(cut) == [-0.5, 0.5, -0.5], "nothing was counted since"


def test_what_a_dropped_step_counted_is_forgotten(sparse_routes: Make) -> None:
    mixture = _mixture(TopK(4, 3, 1, bias_step=0.5))
    balance = LossFreeBalance([mixture])
    balance.count([_routes(sparse_routes, [[0], [0], [0], [0]])])
    balance.begin()
    balance.count([_routes(sparse_routes, [[1], [1]])])
    balance.apply()
    assert _bias(mixture) == [0.5, -0.5, 0.5]


def test_routers_without_a_bias_are_passed_over(sparse_routes: Make) -> None:
    plain, hashed = _mixture(TopK(4, 3, 1)), _mixture(Hash(3, 9))
    biased = _mixture(TopK(4, 3, 1, bias_step=0.5))
    balance = LossFreeBalance([plain, hashed, biased])
    other, own = ([[0], [0]], [[2], [1]])
    balance.count([_routes(sparse_routes, other), _routes(sparse_routes, other), _routes(sparse_routes, own)])
    balance.apply()
    assert _bias(biased) == [0.5, -0.5, -0.5]
    with pytest.raises(ValueError, match="zip"):
        balance.count([_routes(sparse_routes, own)])


RANK = """
import sys, torch
from expertise.mixture import Mixture, Routes, SwiGLUExperts, TopK
from expertise.mixture.loss_free import LossFreeBalance
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
mixture = Mixture(TopK(4, 3, 1, bias_step=0.5), SwiGLUExperts(3, 4, 4))
balance = LossFreeBalance([mixture])
ids = torch.tensor([[[0], [0], [1]], [[2], [2], [2]]])[rank]
balance.count([Routes(gates=torch.ones(3, 1), affinities=torch.ones(3, 3), part_ids=ids)])
balance.apply()
print(mixture.router.bias.tolist())
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_every_rank_moves_alike() -> None:
    """Counts 2, 1, 0 and 0, 0, 3: together 2, 1, 3 with a mean of 2, which neither rank saw."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**variables, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    assert [out.strip() for out, _ in outputs] == ["[0.0, 0.5, -0.5]"] * 2
