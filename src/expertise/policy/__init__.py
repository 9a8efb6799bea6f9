"""Diffusion policies from recorded behaviour, in the order in which data flows.

`batch` (transitions) → `critics` → `objective` (weights, loss) → `task` (what is trained) → `policy` (`act`).
"""

from expertise.policy.batch import Batch
from expertise.policy.critic import RewardCriticConfig, SafetyCriticConfig
from expertise.policy.critics import Critics, CriticsConfig
from expertise.policy.diffusion import Diffusion, DiffusionConfig
from expertise.policy.load import load, load_critics, save
from expertise.policy.network import NETWORKS
from expertise.policy.objective import WEIGHTS
from expertise.policy.policy import DiffusionPolicy, PolicyConfig
from expertise.policy.task import CRITIC_OPTIMIZER, POLICY_OPTIMIZER, CriticTask, DiffusionTask

__all__ = [
    "CRITIC_OPTIMIZER",
    "NETWORKS",
    "POLICY_OPTIMIZER",
    "WEIGHTS",
    "Batch",
    "CriticTask",
    "Critics",
    "CriticsConfig",
    "Diffusion",
    "DiffusionConfig",
    "DiffusionPolicy",
    "DiffusionTask",
    "PolicyConfig",
    "RewardCriticConfig",
    "SafetyCriticConfig",
    "load",
    "load_critics",
    "save",
]
