"""`expertise skill …`: one module per command."""

from expertise.registry import Registry

COMMANDS = Registry(
    "skill command",
    {
        "learn": "expertise.cli.skill.learn:learn",
        "compose": "expertise.cli.skill.compose:compose",
    },
    about="Skills: learn low-rank parts for a model that stays as it is, keep them, compose them.",
)
"""To add a command write its module, which must import nothing heavy at its top, and add a line here."""
