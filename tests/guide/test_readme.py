"""The commands of the README: their options exist, and the block of policies runs as it stands."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from expertise.cli.main import build_app
from expertise.cli.main import run as command
from expertise.policy.data.collect import CollectConfig
from expertise.policy.learn import LearnRecipe, recipe_of
from expertise.policy.learn.composition import CompositionRecipe
from expertise.policy.learn.skills import SkillRecipe
from expertise.runs import recipe as recipes

README = Path(__file__).parents[2] / "README.md"
GROUP: Any = typer.main.get_command(build_app())


def blocks() -> list[list[list[str]]]:
    """The words of each `expertise …` line, block by block."""
    fenced = re.findall(r"^```\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    found = [
        [shlex.split(line, comments=True)[1:] for line in block.splitlines() if line.startswith("expertise ")]
        for block in fenced
    ]
    return [block for block in found if block]


def policy_block() -> list[list[str]]:
    """The block of policies."""
    (block,) = (block for block in blocks() if all(line[0] == "policy" for line in block))
    return block


def options_of(words: list[str]) -> dict[str, Any]:
    """What a command would be called with: every option and argument is there, and takes what it is given."""
    words, group = list(words), GROUP
    if ">" in words:
        words = words[: words.index(">")]
    context: Any = group.context_class(group, info_name="expertise")
    while hasattr(group, "list_commands"):
        name = words.pop(0)
        group = group.get_command(context, name)
        assert group is not None, f"no command {name}"
    parameters: dict[str, Any] = group.make_context(name, words, parent=context).params
    return parameters


@pytest.mark.parametrize(
    "words", [line for block in blocks() for line in block], ids=lambda words: " ".join(words)[:60]
)
def test_a_command_of_the_readme_has_the_options_that_it_is_given(words: list[str]) -> None:
    assert options_of(words) is not None


def learnt(name: str, data: list[str]) -> LearnRecipe:
    """A shipped recipe with data."""
    values = recipes.parse(recipes.find(name)[1], name)
    return recipe_of({**values, "data": [{"path": path} for path in data]})


def test_what_a_line_of_the_policy_block_reads_is_shipped_or_made_by_a_line_before() -> None:
    runs, skills, files = set[str](), set[str](), set[str]()
    for _, name, *words in policy_block():
        options = options_of(["policy", name, *words])
        assert set(options.get("data") or []) <= files
        if name == "collect":
            config = recipes.build(recipes.parse(recipes.find(words[0])[1], words[0]), CollectConfig)
            files |= {f"{options['out']}/{wanted.name}.hdf5" for wanted in config.datasets}
        elif name == "learn":
            recipe = learnt(words[0], options["data"])
            needed = [getattr(recipe, key, "") for key in ("base", "critics")]
            assert {path for path in needed if isinstance(path, str) and path} <= runs
            runs.add(str(options["run"] or f"runs/{words[0]}"))
            if isinstance(recipe, SkillRecipe):
                assert recipe.library == "skills"
                skills.add(recipe.name)
        elif name == "compose":
            assert options["base"] in runs
            assert set(options["skill"]) <= skills
            assert str(options["library"]) == "skills"
            runs.add(str(options["run"]))
        elif name == "evaluate":
            assert {run.rpartition("=")[2] for run in options["runs"]} <= runs
        elif name == "export":
            assert options["run"] in runs
        else:
            assert name == "demo"
    composition = learnt("policy-own-compose", ["x"])
    assert isinstance(composition, CompositionRecipe)
    assert {composition.base} <= runs
    assert set(composition.skills) <= skills


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("bullet_safety_gym") and importlib.util.find_spec("onnxruntime")),
    reason="`make setup-safety` installs what it needs",
)
def test_the_policy_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = {
        # The demo has tests of its own; teachers that learnt less lead through the same lines.
        "learn": ["--set", "train.steps=30"],
        "compose": ["--steps", "30"],
        "evaluate": ["--episodes", "2"],
    }
    for _, name, *words in policy_block():
        if name == "demo":
            continue
        if name == "collect":
            text = re.sub(r"^steps = \d+", "steps = 600", recipes.find(words[0])[1], flags=re.MULTILINE)
            Path("quick.toml").write_text(
                re.sub(r"^episodes = \d+", "episodes = 15", text, flags=re.MULTILINE)
            )
            words[0] = "quick.toml"
        assert command(["policy", name, *words, *shorter.get(name, [])]) == 0, words
    assert Path("runs/page/policy.html").is_file()
    assert Path("controller/policy.onnx").is_file()
