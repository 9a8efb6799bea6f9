"""A step cut into micro-batches is the same step, also where these hold more and fewer tokens that count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expertise.lm import objective
from expertise.lm.config import ModelConfig
from expertise.lm.data import IGNORED, PADDING, Batch, prepare
from expertise.lm.model import LanguageModel
from expertise.lm.recipe import BalanceConfig
from expertise.lm.task import LanguageModelTask
from expertise.mixture import SwiGLU, SwiGLUExperts, TopP, balance
from expertise.mixture.mixture import recording
from expertise.runs.loop import Losses, step_tables

Make = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("same_threads")

CONTEXT = 32
ROWS = {
    "ragged": (32, 30, 10, 4),
    "a row of padding": (32, 0, 9, 4),
    "a micro-batch of padding": (25, 17, 0, 0),
    "full": (32, 32, 32, 32),
}
"""Tokens of each row that are no padding."""
LOSSES: dict[str, dict[str, Any]] = {
    "language": {},
    "expert": {"expert": 1.0, "per": "sequence"},
    "device": {"device": 1.0, "device_groups": 2, "per": "sequence"},
    "entropy": {"entropy": 1.0},
    "z": {"z": 1.0},
    "all": {
        "expert": 0.3,
        "device": 0.2,
        "device_groups": 2,
        "entropy": 0.1,
        "z": 0.4,
        "per": "sequence",
    },
}


def batch_of(sizes: Sequence[int], seed: int = 1) -> Batch:
    """Rows of two documents each and padding; a part of the targets is not learnt."""
    dice = torch.Generator().manual_seed(seed)
    tokens = torch.randint(250, (len(sizes), CONTEXT), generator=dice)
    documents = torch.full_like(tokens, PADDING)
    for row, size in enumerate(sizes):
        tokens[row] = tokens[row] % (10 + 60 * row)  # unlike rows, so that statistics over one and all differ
        documents[row, :size] = (torch.arange(size) > size // 3).long()
    unlearnt = torch.rand(tokens.shape, generator=dice) < 0.3
    targets = tokens.roll(-1, 1).masked_fill((documents == PADDING) | unlearnt, IGNORED)
    return Batch(tokens, targets, documents, documents)


class Given:
    """Hands out a given batch, cut into micro-batches of consecutive rows."""

    def __init__(self, batch: Batch, cuts: int) -> None:
        tables = (batch.tokens, batch.targets, batch.domains, batch.documents)
        self._pieces = [Batch(*piece) for piece in zip(*(t.chunk(cuts) for t in tables), strict=True)]

    def batch(self, index: int) -> Batch:
        return self._pieces[index]


def step(recipe: Any, prepared: Any, batch: Batch, cuts: int) -> tuple[LanguageModelTask, list[Losses]]:
    """One step on a batch in float64; gradients are in the task's model."""
    train = dataclasses.replace(recipe.train, accumulation=cuts)
    task = LanguageModelTask(dataclasses.replace(recipe, train=train), prepared)
    task.model.double()
    task._batches._micro = Given(batch, cuts)  # type: ignore[assignment]
    micro = [task.losses(0, index, True) for index in range(cuts)]
    for losses in micro:
        (losses.total / cuts).backward()
    return task, micro


def gradients(task: LanguageModelTask) -> Tensor:
    return torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / first.norm())


def small_model() -> LanguageModel:
    torch.manual_seed(0)
    router, parts = TopP.Config(p=0.5), SwiGLUExperts.Config(num_parts=4, hidden=16)
    sizes = {"dim": 16, "num_layers": 1, "num_heads": 2, "context": CONTEXT, "vocab_size": 250}
    return LanguageModel(ModelConfig(**sizes, router=router, parts=parts, always=SwiGLU.Config(hidden=16)))


@pytest.fixture(scope="module")
def make(small_recipe: Make) -> Make:
    """`make(balance keys)`: a recipe for windows of documents, and its text."""
    prepared: dict[str, Any] = {}

    def made(keys: dict[str, Any]) -> tuple[Any, Any]:
        recipe = small_recipe("data.pack=documents", "model.router.bias_step=0.01")
        if not prepared:
            prepared["text"] = prepare(recipe.data, recipe.tokenizer)
        return dataclasses.replace(recipe, balance=BalanceConfig(**keys)), prepared["text"]

    return made


@pytest.mark.parametrize("rows", sorted(ROWS))
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_gradients_and_reports_do_not_depend_on_the_cut(make: Make, loss: str, rows: str) -> None:
    recipe, prepared = make(LOSSES[loss])
    whole, (at_once,) = step(recipe, prepared, batch_of(ROWS[rows]), 1)
    assert at_once.total.dtype == torch.float64
    whole.after_step()
    for cuts in (2, 4):
        cut, micro = step(recipe, prepared, batch_of(ROWS[rows]), cuts)
        assert distance(gradients(whole), gradients(cut)) < 1e-9
        for name, value in at_once.reported.items():
            if name != "balance_expert" or recipe.balance.per == "sequence":
                mean = torch.stack([losses.reported[name] for losses in micro]).mean()
                torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-9, msg=name)
        cut.after_step()
        for mixture, other in zip(
            whole.model.mixtures().values(), cut.model.mixtures().values(), strict=True
        ):
            assert torch.equal(mixture.router.bias, other.router.bias)
        tables = step_tables(micro)
        assert set(tables) == {"parts_per_token", "load_0", "load_1", "largest_bias"}
        for name, table in at_once.tables.items():
            torch.testing.assert_close(tables[name], table.double(), msg=name)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(0, CONTEXT), min_size=4, max_size=4).filter(any),
    cuts=st.sampled_from([2, 4]),
    seed=st.integers(0, 99),
)
def test_any_rows_may_be_cut(make: Make, sizes: list[int], cuts: int, seed: int) -> None:
    recipe, prepared = make(LOSSES["all"])
    whole, _ = step(recipe, prepared, batch_of(sizes, seed), 1)
    cut, _ = step(recipe, prepared, batch_of(sizes, seed), cuts)
    assert distance(gradients(whole), gradients(cut)) < 1e-9


@pytest.mark.parametrize("loss", ["expert", "device"])
def test_statistics_per_batch_weigh_micro_batches_by_their_tokens(make: Make, loss: str) -> None:
    """Documented: they are taken over one micro-batch, so the cut matters; padding alone has no weight."""
    recipe, prepared = make({**LOSSES[loss], "per": "batch"})
    whole, _ = step(recipe, prepared, batch_of(ROWS["ragged"]), 1)
    cut, micro = step(recipe, prepared, batch_of(ROWS["ragged"]), 4)
    assert distance(gradients(whole), gradients(cut)) > 1e-3
    _, alone = step(recipe, prepared, batch_of(ROWS["ragged"][:1]), 1)
    share = ROWS["ragged"][0] / (sum(ROWS["ragged"]) / 4)
    expected = share * alone[0].reported[f"balance_{loss}"]
    torch.testing.assert_close(micro[0].reported[f"balance_{loss}"], expected)
    whole, _ = step(recipe, prepared, batch_of((20, 9, 0, 0)), 1)
    cut, micro = step(recipe, prepared, batch_of((20, 9, 0, 0)), 2)
    assert distance(gradients(whole), gradients(cut)) < 1e-9
    assert float(micro[1].reported[f"balance_{loss}"].detach()) == 0


def test_each_sequence_is_what_it_is_alone_and_padding_alone_is_nothing(make: Make) -> None:
    """An independent reading: every row computed by itself, without its padding."""
    recipe, prepared = make({"device": 1.0, "device_groups": 2, "per": "sequence"})
    batch = batch_of((32, 0, 9, 4))
    task, (losses,) = step(recipe, prepared, batch, 1)
    expert, device, tokens_entropy = [], [], []
    for row, size in enumerate((32, 0, 9, 4)):
        if not size:
            continue
        assert batch.documents is not None
        with recording(task.model) as mixtures:
            task.model(batch.tokens[row : row + 1, :size], documents=batch.documents[row : row + 1, :size])
        routes = [mixture.last_routes for mixture in mixtures]
        expert.append(torch.stack([balance.expert_balance(r) for r in routes]).mean())
        device.append(torch.stack([balance.device_balance(r, [[0, 1], [2, 3]]) for r in routes]).mean())
        tokens_entropy += [balance.token_entropy(r) for r in routes]
    found = losses.reported
    torch.testing.assert_close(found["balance_expert"], torch.stack(expert).mean())
    torch.testing.assert_close(found["balance_device"], torch.stack(device).mean())
    torch.testing.assert_close(found["balance_entropy"], torch.cat(tokens_entropy).mean())


@pytest.mark.parametrize("per", ["sequence", "batch"])
@pytest.mark.parametrize("sizes", [(0, 0), (0, 7)])
def test_padding_alone_gives_zeros_in_python_too(per: Any, sizes: tuple[int, ...]) -> None:
    model = small_model()
    batch = batch_of(sizes)
    config = BalanceConfig(expert=1.0, device=1.0, device_groups=2, entropy=1.0, z=1.0, per=per)
    found = objective.losses(
        model, batch.tokens, batch.targets, config, detail=True, documents=batch.documents
    )
    found.total.backward()
    values = [*found.reported.values(), *found.tables.values(), *(p.grad for p in model.parameters())]
    assert all(bool(value.isfinite().all()) for value in values if value is not None)
    if not any(sizes):
        assert float(found.total.detach()) == 0


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_loss_is_in_float32_or_better(dtype: torch.dtype, expected: torch.dtype) -> None:
    model, batch = small_model().to(dtype), batch_of(ROWS["ragged"])
    found = objective.next_token_loss(model, batch.tokens, batch.targets, batch.documents)
    assert found.dtype == expected
    logits = model(batch.tokens, documents=batch.documents).double().flatten(0, 1)
    exact = torch.nn.functional.cross_entropy(logits, batch.targets.flatten())
    assert abs(float(found.detach()) - float(exact.detach())) < (1e-14 if dtype == torch.float64 else 1e-6)
