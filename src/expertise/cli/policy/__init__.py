"""The commands `expertise policy …`, one function per command."""

from expertise.registry import Registry

COMMANDS = Registry(
    "policy command",
    {
        "demo": "expertise.cli.policy.demo:demo",
        "collect": "expertise.cli.policy.collect:collect",
        "learn": "expertise.cli.policy.learn:learn",
        "compose": "expertise.cli.policy.compose:compose",
        "evaluate": "expertise.cli.policy.evaluate:evaluate",
        "export": "expertise.cli.policy.export:export",
    },
    about="Policies: learn to act from recorded behaviour, grow skills, compose them state by state.",
)
"""To add a command write a function, whose module imports nothing heavy at its top, and add a line here."""
