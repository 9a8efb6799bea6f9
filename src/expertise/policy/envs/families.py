"""Families of environments. To add one, write its module and add a line here."""

from expertise.registry import Registry

FAMILIES = Registry(
    "family of environments",
    {
        "dmc": "expertise.policy.envs.dm_control:DMC",
        "gym": "expertise.policy.envs.mujoco:GYM",
        "velocity": "expertise.policy.envs.mujoco:VELOCITY",
        "metaworld": "expertise.policy.envs.metaworld:METAWORLD",
        "bullet": "expertise.policy.envs.bullet:BULLET",
    },
)
"""Name → `Family`."""
