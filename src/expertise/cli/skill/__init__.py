"""The commands `expertise skill …`, one function per command."""

from expertise.registry import Registry

COMMANDS = Registry(
    "skill command",
    {
        "learn": "expertise.cli.skill.learn:learn",
        "compose": "expertise.cli.skill.compose:compose",
        "list": "expertise.cli.skill.look:list_skills",
        "show": "expertise.cli.skill.look:show",
        "compare": "expertise.cli.skill.compare:compare",
        "merge": "expertise.cli.skill.merge:merge",
        "verify": "expertise.cli.skill.verify:verify",
        "import": "expertise.cli.skill.exchange:import_adapter",
        "export": "expertise.cli.skill.exchange:export",
        "add": "expertise.cli.skill.exchange:add",
        "rename": "expertise.cli.skill.change:rename",
        "remove": "expertise.cli.skill.change:remove",
        "report": "expertise.cli.skill.report:report",
    },
    about="Skills: learn low-rank parts for a model that stays as it is, keep them, compose them.",
)
"""To add a command write a function, whose module imports nothing heavy at its top, and add a line here."""
