"""Diffusion policies from recorded behaviour, in the order in which data flows.

`envs`, `data` → `batch` (transitions) → `critics` → `objective` (weights, errors) → `task` (what is trained)
→ `acting` (what every policy can do) → `policy` → `growing` (a skill) → `compose` (alpha(s) over skills) and
`baselines` → `learn` (recipes) → `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expertise.lazy import public_names

if TYPE_CHECKING:
    from expertise.policy.acting import POLICIES, Policy
    from expertise.policy.batch import Batch
    from expertise.policy.compose import ComposedPolicy
    from expertise.policy.critic import RewardCriticConfig, SafetyCriticConfig
    from expertise.policy.critics import Critics, CriticsConfig
    from expertise.policy.diffusion import Diffusion, DiffusionConfig
    from expertise.policy.load import load, load_critics, save
    from expertise.policy.network import NETWORKS
    from expertise.policy.objective import WEIGHTS
    from expertise.policy.policy import DiffusionPolicy, PolicyConfig
    from expertise.policy.task import CRITIC_OPTIMIZER, POLICY_OPTIMIZER, CriticTask, PolicyTask

__all__ = [
    "CRITIC_OPTIMIZER",
    "NETWORKS",
    "POLICIES",
    "POLICY_OPTIMIZER",
    "WEIGHTS",
    "Batch",
    "ComposedPolicy",
    "CriticTask",
    "Critics",
    "CriticsConfig",
    "Diffusion",
    "DiffusionConfig",
    "DiffusionPolicy",
    "Policy",
    "PolicyConfig",
    "PolicyTask",
    "RewardCriticConfig",
    "SafetyCriticConfig",
    "load",
    "load_critics",
    "save",
]

public_names(
    __name__,
    {
        "acting": (
            "POLICIES",
            "Policy",
        ),
        "batch": ("Batch",),
        "compose": ("ComposedPolicy",),
        "critic": (
            "RewardCriticConfig",
            "SafetyCriticConfig",
        ),
        "critics": (
            "Critics",
            "CriticsConfig",
        ),
        "diffusion": (
            "Diffusion",
            "DiffusionConfig",
        ),
        "load": (
            "load",
            "load_critics",
            "save",
        ),
        "network": ("NETWORKS",),
        "objective": ("WEIGHTS",),
        "policy": (
            "DiffusionPolicy",
            "PolicyConfig",
        ),
        "task": (
            "CRITIC_OPTIMIZER",
            "POLICY_OPTIMIZER",
            "CriticTask",
            "PolicyTask",
        ),
    },
)
