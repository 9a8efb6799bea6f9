"""Schedules at exact steps; what is decayed."""

from __future__ import annotations

from fractions import Fraction

import pytest
from torch import nn

from expertise.errors import RecipeError
from expertise.runs.optim import OptimizerConfig


def rates(steps: int, **fields: object) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, **fields)  # type: ignore[arg-type]
    return [config.rate(step, steps) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 5, 10, 15, 30, 70, 99, 100, 25_000])
def test_two_drops_at_80_and_90_percent(steps: int) -> None:
    expected = [
        0.316 ** ((Fraction(s, steps) >= Fraction(8, 10)) + (Fraction(s, steps) >= Fraction(9, 10)))
        for s in range(steps)
    ]
    assert rates(steps) == pytest.approx(expected, rel=1e-12)


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    assert rates(10, warmup=4, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert rates(4, warmup=8, schedule="steps") == [0.125, 0.25, 0.375, 0.5]
    assert rates(4, warmup=8, schedule="cosine") == [0.125, 0.25, 0.375, 0.5]


def test_cosine_falls_from_the_peak_to_its_end() -> None:
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup=10, final_ratio=0.25)
    assert config.rate(10, 110) == 2.0
    assert config.rate(60, 110) == pytest.approx(2.0 * (0.25 + 0.75 * 0.5))
    assert config.rate(110, 110) == pytest.approx(0.5)
    falling = [config.rate(step, 110) for step in range(10, 110)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.5, rel=1e-3)
    assert OptimizerConfig(learning_rate=1.0, schedule="cosine", final_ratio=0.0).rate(10, 10) == 0


def test_a_schedule_may_have_a_length_of_its_own_and_its_rate_stays() -> None:
    for schedule in ("cosine", "steps"):
        short = [rates(10, schedule=schedule, schedule_steps=length) for length in (0, 10)]
        assert short[0] == short[1]
        longer = rates(30, schedule=schedule, schedule_steps=10)
        assert longer[:10] == short[0]
        end = {"cosine": 0.1, "steps": 0.316**2}[schedule]
        assert longer[10:] == pytest.approx([end] * 20)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.RMSNorm(3)
        self.embedding = nn.Embedding(4, 3)
        self.stack = nn.Parameter(nn.init.ones_(nn.Linear(2, 2).weight.data.new_empty(2, 3, 4)))
        self.frozen = nn.Parameter(self.stack.detach().clone(), requires_grad=False)


def test_matrices_are_decayed_norms_and_biases_are_not() -> None:
    model = Several()
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=0.3, beta1=0.8, beta2=0.9).build(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {
        "linear.weight": 0.3,
        "embedding.weight": 0.3,
        "stack": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
    }
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_no_rate_is_refused_in_python_too(rate: float) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.learning_rate must be positive"):
        OptimizerConfig(learning_rate=rate)
