"""No policy acts on observations that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from expertise.errors import DataError
from expertise.mixture import Context
from expertise.policy import DiffusionPolicy
from expertise.policy.acting import POLICIES, Policy
from expertise.policy.baselines.actions import ActionComposition
from expertise.policy.baselines.direct import DirectConfig
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.compose import ComposedPolicy
from expertise.policy.growing import GrowingPolicy, GrowthConfig
from expertise.skills.skill import Skill


@pytest.fixture
def every(make_policy: Callable[..., DiffusionPolicy], make_skill: Callable[..., Skill]) -> dict[str, Policy]:
    base, growth = make_policy(), GrowthConfig()
    pair = [make_policy(), make_policy()]
    return {
        "diffusion": base,
        "composed": ComposedPolicy(base, [make_skill("go")], Context.Config()),
        "growing": GrowingPolicy(base, growth.new(base.acting, "on", 0), growth),
        "nsec": NoiseComposition(pair, ["a", "b"], Context.Config()),
        "asec": ActionComposition(pair, ["a", "b"], Context.Config()),
        "direct": DirectConfig().build(3, 2),
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_every_kind_of_policy_refuses_in_a_line(every: dict[str, Policy], bad: float) -> None:
    assert set(every) == set(POLICIES)
    rows = np.zeros((2, 3), np.float32)
    rows[1, 2] = bad
    forms: list[Any] = [rows, rows[1], rows.tolist(), rows.astype(np.float64), torch.from_numpy(rows)]
    for policy in every.values():
        assert np.isfinite(policy.act(rows[0])).all()
        for form in forms:
            with pytest.raises(DataError, match=rf"observations hold {bad:g} in state [01], component 2"):
                policy.act(form)


def test_numbers_beyond_float32_are_refused(make_policy: Callable[..., DiffusionPolicy]) -> None:
    for form in ([1e300, 0.0, 0.0], np.array([1e300, 0.0, 0.0]), torch.tensor([1e300, 0.0, 0.0]).double()):
        with pytest.raises(DataError, match="in state 0, component 0"):
            make_policy().act(form)
