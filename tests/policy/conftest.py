"""Small policies and critics."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from expertise.policy import (
    Critics,
    CriticsConfig,
    DiffusionPolicy,
    PolicyConfig,
    RewardCriticConfig,
    SafetyCriticConfig,
)
from expertise.policy.network import PlainNetwork

SMALL = PlainNetwork.Config(hidden=16, num_layers=2, time_features=4)


@pytest.fixture
def make_policy() -> Callable[..., DiffusionPolicy]:
    """`make_policy(…)`: a policy for observations of width 3 and actions of width 2; fields of its config."""

    def make(**fields: object) -> DiffusionPolicy:
        torch.manual_seed(0)
        return PolicyConfig(**{"network": SMALL, **fields}).build(3, 2)  # type: ignore[arg-type]

    return make


@pytest.fixture
def make_critics() -> Callable[..., Critics]:
    """`make_critics("reward", …)`: critics with random weights that tell actions apart."""

    def make(*names: str) -> Critics:
        torch.manual_seed(1)
        config = CriticsConfig(
            reward=RewardCriticConfig(hidden=[16]) if "reward" in names else None,
            safety=SafetyCriticConfig(hidden=[16]) if "safety" in names else None,
        )
        critics = Critics(config, 3, 2)
        for module in critics.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.bias)
        return critics

    return make


@pytest.fixture(autouse=True)
def _threads(same_threads: None) -> None:
    """No test here leaves another number of threads behind."""
