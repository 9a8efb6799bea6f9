"""Tokens from a model against a loop without cache, and every setting at its edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.lm.config import ModelConfig
from expertise.lm.generate import Sampling
from expertise.lm.model import LanguageModel
from expertise.mixture import SwiGLU, SwiGLUExperts, TopP


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        context=16,
        vocab_size=30,
        router=TopP.Config(p=0.5),
        parts=SwiGLUExperts.Config(num_parts=4, hidden=16),
        always=SwiGLU.Config(hidden=16),
    )
    built = LanguageModel(config).eval()
    with torch.no_grad():
        built.head_weight.mul_(3)
    return built


PROMPT = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])


@torch.no_grad()
def greedy_loop(model: LanguageModel, tokens: Tensor, number: int) -> Tensor:
    for _ in range(number):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)], 1)
    return tokens


def test_greedy_equals_the_loop_without_cache(model: LanguageModel) -> None:
    expected = greedy_loop(model, PROMPT, 11)
    assert torch.equal(model.generate(PROMPT, 11, temperature=0.0), expected)
    for row in range(2):
        alone = model.generate(PROMPT[row : row + 1], 11, temperature=0.0)
        assert torch.equal(alone, expected[row : row + 1])


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-45}])
def test_settings_that_leave_one_token_are_greedy(model: LanguageModel, settings: dict[str, Any]) -> None:
    expected = model.generate(PROMPT, 8, temperature=0.0)
    assert torch.equal(model.generate(PROMPT, 8, seed=3, **settings), expected)


def test_a_seed_repeats_and_another_differs(model: LanguageModel) -> None:
    first = model.generate(PROMPT, 10, seed=1)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(model.generate(PROMPT, 10, seed=1), first)
    assert not torch.equal(model.generate(PROMPT, 10, seed=2), first)
    assert not torch.equal(model.generate(PROMPT, 11), model.generate(PROMPT, 11)), "no seed: a new one"
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is the caller's"


def frequencies(sampling: Sampling, logits: list[float], number: int = 4000) -> list[float]:
    rows = torch.tensor([logits]).log().expand(number, -1)
    before = torch.zeros(number, 1, dtype=torch.int64)
    chosen = sampling.choose(rows, before, torch.Generator().manual_seed(0))
    return [float((chosen == token).float().mean()) for token in range(len(logits))]


P = [0.1, 0.4, 0.2, 0.3]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=99), P),
        (Sampling(top_p=0.39), [0, 1, 0, 0]),
        (Sampling(top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=1.0), P),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=0.0), [0, 1, 0, 0]),
    ],
)
def test_sampled_shares_are_the_ones_asked_for(sampling: Sampling, expected: list[float]) -> None:
    assert frequencies(sampling, P) == pytest.approx(expected, abs=0.03)


def test_equal_logits_do_not_widen_top_k() -> None:
    found = frequencies(Sampling(top_k=2), [0.25, 0.25, 0.25, 0.25])
    assert sum(share > 0 for share in found) == 2


def test_a_stop_token_ends_each_row_by_itself(model: LanguageModel) -> None:
    plain = model.generate(PROMPT, 10, temperature=0.0)
    stop = int(plain[0, 6])
    found = model.generate(PROMPT, 10, temperature=0.0, stop=stop)
    for row in range(2):
        new = plain[row, 5:].tolist()
        length = new.index(stop) + 1 if stop in new else len(new)
        assert found[row, 5 : 5 + length].tolist() == new[:length]
        assert set(found[row, 5 + length :].tolist()) <= {stop}
    several = model.generate(PROMPT[:1], 10, temperature=0.0, stop=[29, stop])
    assert several.shape[1] <= 7


def test_stopping_is_early_when_all_rows_have_stopped(model: LanguageModel) -> None:
    first = int(model.generate(PROMPT[:1], 1, temperature=0.0)[0, -1])
    same = PROMPT[:1].repeat(3, 1)
    assert model.generate(same, 10, temperature=0.0, stop=first).shape == (3, 6)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_run_of_so_many_tokens_comes_twice(model: LanguageModel, length: int, temperature: float) -> None:
    number = 20 if length == 1 else 60
    prompt = torch.tensor([[3, 1, 4], [7, 7, 6]])
    for row in model.generate(prompt, number, temperature, seed=0, no_repeat=length).tolist():
        runs = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
        repeated = {run for run in runs[3 - length + 1 :] if runs.count(run) > 1}
        assert not repeated - {(7,)}, "only the prompt itself may hold one twice"


def test_greedy_text_does_repeat_without_it(model: LanguageModel) -> None:
    row = model.generate(PROMPT[:1], 60, temperature=0.0)[0].tolist()
    runs = [tuple(row[i : i + 2]) for i in range(len(row) - 1)]
    assert len(set(runs)) < len(runs)


def test_when_every_token_is_used_up_something_is_still_chosen(model: LanguageModel) -> None:
    assert model.generate(PROMPT[:1], 40, temperature=1.0, seed=0, no_repeat=1).shape == (1, 45)


def test_beyond_the_context_the_newer_half_is_read_again(model: LanguageModel) -> None:
    found = model.generate(PROMPT, 30, temperature=0.0)
    assert found.shape == (2, 35)
    assert torch.equal(found[:, :17], greedy_loop(model, PROMPT, 12))
    # Token 16 no longer fits: positions 9 … 16 are read again from position 0.
    assert torch.equal(found[:, 17:26], greedy_loop(model, found[:, 9:17], 9)[:, 8:])


@pytest.mark.parametrize("length", [15, 16])
def test_a_prompt_may_fill_the_context(model: LanguageModel, length: int) -> None:
    prompt = torch.arange(length)[None] % 30
    found = model.generate(prompt, 3, temperature=0.0)
    assert torch.equal(found[:, length], greedy_loop(model, prompt, 1)[:, -1])
    assert found.shape == (1, length + 3)


def test_no_new_tokens_give_the_prompt_back(model: LanguageModel) -> None:
    assert torch.equal(model.generate(PROMPT, 0), PROMPT)


@pytest.mark.parametrize(
    ("tokens", "settings", "message"),
    [
        (torch.zeros(1, 17, dtype=torch.int64), {}, "prompt has 17 tokens, the model's context holds 16"),
        (torch.zeros(1, 0, dtype=torch.int64), {}, "an empty prompt"),
        (torch.zeros(0, 3, dtype=torch.int64), {}, "prompt"),
        (torch.tensor([[30]]), {}, "token ids must lie in 0 … 29"),
        (torch.tensor([[-1]]), {}, "token ids must lie in 0 … 29"),
        (PROMPT, {"temperature": -1.0}, "temperature must be 0 or more, not -1.0"),
        (PROMPT, {"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        (PROMPT, {"top_k": 0}, "top_k must be at least 1, not 0"),
        (PROMPT, {"top_p": 0.0}, r"top_p must lie in \(0, 1\], not 0.0"),
        (PROMPT, {"top_p": 1.1}, r"top_p must lie in \(0, 1\], not 1.1"),
        (PROMPT, {"no_repeat": 0}, "no_repeat must be at least 1, not 0"),
        (PROMPT, {"seed": 2**70}, "seed"),
    ],
)
def test_what_cannot_be_is_refused(
    model: LanguageModel, tokens: Tensor, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        model.generate(tokens, 2, **settings)
