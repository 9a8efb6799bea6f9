"""`expertise skill list`, `show`, `import`, …: a library by commands, on a run of ours."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from expertise.lm import load
from expertise.runs.files import sha256_of
from expertise.skills import Card, Library, Skill, compose, fingerprint, save_composed
from expertise.skills.learn import SkillConfig, fresh

Command = Callable[..., subprocess.CompletedProcess[str]]

ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}
ATTENTION = ["blocks.*.attention.qkv"]


def skill_of(base: torch.nn.Module, name: str, seed: int, rank: int = 2) -> Skill:
    """A skill with factors of noise."""
    skill = fresh(base, name, SkillConfig(targets=ATTENTION, rank=rank), seed)
    torch.manual_seed(seed)
    made = {a: dataclasses.replace(f, B=torch.randn_like(f.B)) for a, f in skill.factors.items()}
    return dataclasses.replace(skill, factors=made)


@pytest.fixture(scope="module")
def place(home: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: a run, a library `original` of two skills, an adapter, a composed model."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(run_folder, place / "run")
    shutil.copytree(home / "text", place / "text")
    shutil.copy(home / "small.toml", place)
    base, library = load(run_folder), Library(place / "original")
    prose, code = skill_of(base, "prose", 0), skill_of(base, "code", 1, rank=3)
    library.add(prose, base=base, purpose="writes\nprose", metrics={"loss": {"after": 1.5}})
    library.add(code, base=base, purpose="writes code", data="code", data_digest="ab")
    library.export_peft("prose", place / "adapter")
    save_composed(compose(base, library, ["prose"], weights=[0.5]), place / "composed", base=run_folder)
    return place


@pytest.fixture(scope="module")
def skill(place: Path, expertise_in) -> Command:
    """`skill("list")`: `expertise skill list` in that place."""
    run = expertise_in(place)
    return lambda *arguments: run("skill", *arguments)


@pytest.fixture
def library(place: Path) -> Path:
    """A copy of the library that may be changed, under the name that commands take by default."""
    shutil.rmtree(place / "skills", ignore_errors=True)
    shutil.copytree(place / "original", place / "skills")
    return place / "skills"


def card(library: Path, name: str) -> Card:
    found = Library(library).card(name)
    assert found is not None
    return found


def rows(text: str) -> dict[str, list[str]]:
    """First word of each line → the others."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(done: subprocess.CompletedProcess[str], named: str, hint: str = "") -> None:
    """Exit code 2, one line that names the mistake and at most three of hint; nothing else."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: "), done.stderr
    assert named in lines[0], done.stderr
    assert hint in "\n".join(lines[1:]), done.stderr
    assert len(lines) <= 4, done.stderr
    assert done.stdout == ""


def test_list_and_show_say_what_the_cards_say(library: Path, skill: Command) -> None:
    before = tree(library)
    listed = json.loads(skill("list", "--json").stdout)
    assert [(row["name"], row["ranks"], row["weights"], row["has_card"]) for row in listed] == [
        ("code", [3], 2, True),
        ("prose", [2], 2, True),
    ]
    assert listed[1]["bytes"] == sum(p.stat().st_size for p in (library / "prose").iterdir())
    human = rows(skill("list").stdout)
    assert human["code"][:2] == ["3", "2"]
    assert human["prose"][-2:] == ["writes", "prose"]
    shown = json.loads(skill("show", "code", "--json").stdout)
    assert shown.pop("has_card") is True
    assert shown.pop("library") == "skills"
    assert shown == json.loads(json.dumps(dataclasses.asdict(card(library, "code"))))
    text = skill("show", "prose").stdout
    assert "2 weights at rank 2: qkv" in text
    assert "loss.after" in text
    assert "1.5000" in text
    assert tree(library) == before


def test_a_damaged_skill_and_one_without_a_card_stand_in_the_list(library: Path, skill: Command) -> None:
    (library / "code" / "card.json").write_text("{}")
    (library / "prose" / "card.json").unlink()
    done = skill("list")
    assert done.returncode == 0
    assert "damaged skill skills/code: card.json is not what was written" in done.stdout
    assert "no card: not verified" in done.stdout
    listed = json.loads(skill("list", "--json").stdout)
    assert [bool(row["problem"]) for row in listed] == [True, False]
    assert "skill import skills/prose --library skills" in skill("show", "prose").stdout
    assert json.loads(skill("show", "prose", "--json").stdout) == {
        "has_card": False,
        "library": "skills",
        "name": "prose",
    }
    refused(skill("show", "code"), "card.json is not what was written")


def test_a_hundred_skills_are_listed_without_torch_and_at_once(library: Path, tmp_path: Path) -> None:
    for number in range(100):
        shutil.copytree(library / "prose", tmp_path / f"skill-{number:03}")
    for command in (["list"], ["show", "skill-042"]):
        call = f"run(['skill', *{command!r}, '--library', {str(tmp_path)!r}])"
        code = f"import sys; from expertise.cli.main import run; {call}; print(*sys.modules, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not {"torch", "numpy", "safetensors", "filelock"} & set(done.stderr.split())
    assert cpu_seconds("-m", "expertise", "skill", "list", "--library", str(tmp_path)) <= 0.5


def cpu_seconds(*arguments: str) -> float:
    """What the cheapest of several starts takes of a core; the machine may be busy with other things."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_an_adapter_is_imported_with_what_is_said_of_it(place: Path, library: Path, skill: Command) -> None:
    options = ["--name", "new", "--purpose", "tells", "--data", "small.toml"]
    done = skill("import", "adapter", *options, "--base", "run", "--json")
    assert done.returncode == 0, done.stderr
    new = card(library, "new")
    assert json.loads(done.stdout)["files"] == new.files
    assert (new.purpose, new.data) == ("tells", "small.toml")
    assert new.data_digest == sha256_of(place / "small.toml")
    assert new.base == fingerprint(load(place / "run"))
    assert {n: b for n, b in tree(library / "new").items() if n != "card.json"} == tree(place / "adapter")
    plain = skill("import", "adapter", "--data", "told by hand")
    assert "its base is not known" in plain.stdout
    assert card(library, "adapter").base is None
    assert (card(library, "adapter").data, card(library, "adapter").data_digest) == ("told by hand", None)


def test_a_folder_dropped_in_by_hand_is_verified_and_gets_its_card(
    place: Path, library: Path, skill: Command
) -> None:
    shutil.copytree(place / "adapter", library / "dropped")
    found = json.loads(skill("verify", "--json").stdout)
    (dropped,) = [check for check in found["skills"] if check["name"] == "dropped"]
    assert dropped["problems"] == []
    assert set(dropped["missing"]) == {field.name for field in dataclasses.fields(Card)}
    human = skill("verify")
    assert human.returncode == 0
    assert "the card does not say: name, purpose, base, data, data_digest, metrics" in human.stdout
    done = skill("import", "skills/dropped", "--base", "run", "--purpose", "was dropped")
    assert done.returncode == 0, done.stderr
    assert card(library, "dropped").base == card(library, "prose").base
    after = json.loads(skill("verify", "--json").stdout)
    (dropped,) = [check for check in after["skills"] if check["name"] == "dropped"]
    assert set(dropped["missing"]) == {"data", "data_digest"}
    skill("import", "skills/dropped", "--data", "small.toml")
    assert card(library, "dropped").data_digest == sha256_of(place / "small.toml")
    skill("import", "skills/dropped", "--data", "other words")
    now = card(library, "dropped")
    assert (now.purpose, now.data, now.data_digest) == ("was dropped", "other words", None)


def test_export_gives_the_adapter_alone(place: Path, library: Path, tmp_path: Path, skill: Command) -> None:
    done = skill("export", "code", "--out", str(tmp_path / "out"), "--json")
    assert json.loads(done.stdout) == {"library": "skills", "name": "code", "out": str(tmp_path / "out")}
    assert set(tree(tmp_path / "out")) == ADAPTER
    again = skill("export", "code", "--out", str(tmp_path / "out"))
    refused(again, f"{tmp_path / 'out'} is there already")


def test_a_skill_of_another_library_comes_with_its_card(
    place: Path, library: Path, tmp_path: Path, skill: Command
) -> None:
    shutil.rmtree(library / "prose")
    done = skill("add", "original/prose", "--base", "run")
    assert done.returncode == 0, done.stderr
    assert tree(library / "prose") == tree(place / "original" / "prose")
    renamed = skill("add", "original/prose", "--name", "poetry", "--json")
    assert json.loads(renamed.stdout)["name"] == "poetry"
    came, was = card(library, "poetry"), card(place / "original", "prose")
    assert came == dataclasses.replace(was, name="poetry")
    refused(skill("add", "adapter"), "adapter: it has no card.json", "import it")
    refused(skill("add", "original"), "no skill at original", "such as original/code")
    shutil.copytree(place / "original" / "code", tmp_path / "code")
    with (tmp_path / "code" / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    refused(skill("add", str(tmp_path / "code"), "--name", "x"), "adapter_model.safetensors is not")
    assert Library(library).names() == ["code", "poetry", "prose"]


def test_another_base_is_refused_unless_it_is_forced(
    place: Path, library: Path, tmp_path: Path, skill: Command, expertise: Command
) -> None:
    stranger = tmp_path / "run"
    done = expertise(
        "train", "small.toml", "--out", str(stranger), "--set", "train.seed=5", "--set", "train.steps=1"
    )
    assert done.returncode == 0, done.stderr
    base = ["--base", str(stranger)]
    refused(
        skill("add", "original/code", "--name", "x", *base),
        "skill x was learnt on another base: this one has the same shapes with other weights",
    )
    refused(skill("compare", "code", *base), "another base")
    refused(skill("merge", "code", "--name", "x", *base), "another base")
    assert skill("add", "original/code", "--name", "x", "--force", *base).returncode == 0
    assert card(library, "x").base == card(library, "code").base
    assert skill("compare", "code", "--force", *base).returncode == 0
    few = ("--steps", "1", "--batch-size", "2", "--threads", "1", "--device", "cpu")
    for command in (
        ("compose", str(stranger), "--skills", "code", "--weights", "1", "--out", "forced"),
        ("compose", str(stranger), "--skills", "code", "--data", "text", "--out", "learnt", *few),
        ("learn", str(stranger), "--data", "text", "--name", "y", "--beside", "code", *few),
    ):
        refused(skill(*command), "another base", "--force")
        done = skill(*command, "--force")
        assert done.returncode == 0, done.stderr
    refused(skill("merge", "code,y", "--name", "z"), "different bases", "--force")


def test_compare_prints_likeness_energy_and_proposals(library: Path, skill: Command) -> None:
    skill("merge", "prose", "--weights", "-0.5", "--name", "esorp")
    before = tree(library)
    found = json.loads(skill("compare", "--used-by", "composed", "--json").stdout)
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [
        ("code", "esorp"),
        ("code", "prose"),
        ("esorp", "prose"),
    ]
    assert found["pairs"][2]["cosine"] == pytest.approx(-1)
    assert [(p["kind"], p["skills"]) for p in found["proposals"]] == [
        ("redundant", ["esorp", "prose"]),
        ("unused", ["code"]),
        ("unused", ["esorp"]),
    ]
    human = skill("compare", "prose,esorp", "code", "--base", "run", "--energy", "0.1")
    assert human.returncode == 0, human.stderr
    lines = human.stdout.splitlines()
    assert lines[0].split() == ["cosine", "prose", "esorp", "code"]
    assert lines[2].split()[:3] == ["esorp", "-1.000", "1.000"]
    assert "the opposite direction: cosine -1.000" in human.stdout
    assert "at rank 1 of 3" in human.stdout
    assert tree(library) == before


def test_many_skills_are_compared_by_their_nearest_pairs(place: Path, skill: Command) -> None:
    many = place / "many"
    for number in range(11):
        shutil.copytree((place / "original") / ("prose" if number < 2 else "code"), many / f"s{number:02}")
    lines = skill("compare", "--library", "many").stdout.splitlines()
    assert lines[0] == "cosine of the 20 pairs that are most alike"
    assert [float(line.split()[2]) for line in lines[1:21]] == [1.0] * 20
    assert lines[21] == ""


def test_merge_adds_the_sum_and_says_what_was_lost(library: Path, skill: Command) -> None:
    exact = skill("merge", "prose,code", "--weights", "-0.3,0.7", "--name", "sum")
    assert exact.returncode == 0, exact.stderr
    assert exact.stdout.splitlines() == ["skill sum is in skills, rank 5", "error: none, it is exact"]
    made = card(library, "sum")
    assert list(made.parents) == ["prose", "code"]
    assert made.metrics["merge"]["weights"] == [-0.3, 0.7]
    assert made.base == card(library, "prose").base
    cut = skill("merge", "prose", "code", "--rank", "2", "--name", "cut", "--purpose", "both", "--json")
    result = json.loads(cut.stdout)
    assert 0.05 < result["error"] < 1
    assert result["metrics"]["merge"]["error"] == result["error"]
    assert set(result["errors"]) == set(result["targets"])
    assert set(result["targets"].values()) == {2}
    human = skill("merge", "prose,code", "--rank", "2", "--name", "again")
    assert human.stdout.splitlines()[1] == f"error: {result['error']:.2%} of the norm of the exact sum"


def test_verify_ends_with_2_when_it_found_damage(library: Path, process) -> None:
    whole = process("skill", "verify", "--library", str(library))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.splitlines()[-1] == "2 skills, 0 of them cannot be used"
    weights = library / "code" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (library / "notes").mkdir()
    broken = process("skill", "verify", "--library", str(library))
    assert broken.returncode == 2
    damage = f"damaged skill {library}/code: adapter_model.safetensors is not what was written"
    assert f"code: cannot be used\n  {damage}\n" in broken.stdout
    assert "prose: whole" in broken.stdout
    assert "notes: no skill" in broken.stdout
    assert process("skill", "verify", "--json", "--library", str(library)).returncode == 2


def test_rename_and_remove(library: Path, skill: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert skill("rename", "prose", "poetry").stdout == "prose is now poetry\n"
    assert card(library, "poetry").name == "poetry"
    nobody = skill("remove", "poetry")
    refused(nobody, "skills/poetry was not removed", "--yes")
    for answer, stays in (("n\n", True), ("y\n", False)):
        terminal = io.StringIO(answer)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", terminal)
        done = skill("remove", "poetry")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == ("skills/poetry stays" if stays else "removed skills/poetry")
        assert ("poetry" in Library(library).names()) == stays
    done = skill("remove", "code", "--yes", "--json")
    assert json.loads(done.stdout) == {"library": "skills", "name": "code", "removed": True}
    assert skill("list").stdout == ""
    assert json.loads(skill("list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "named", "hint"),
    [
        (["show", "pros"], "no skill 'pros' in skills", "did you mean 'prose'?"),
        (["show", "../original/code"], "no skill '../original/code'", ""),
        (["show", ""], "no skill '' in skills", ""),
        (["rename", "pros", "x"], "no skill 'pros'", "prose"),
        (["rename", "prose", "code"], "has a skill 'code' already", ""),
        (["rename", "prose", "a/b"], "'a/b' cannot be a skill's name", "letters"),
        (["remove", "pros", "--yes"], "no skill 'pros'", "prose"),
        (["export", "pros", "--out", "x"], "no skill 'pros'", "prose"),
        (["compare", "prose,cod"], "no skill 'cod'", "code"),
        (["compare", "prose,"], "skills 'prose,': an empty name", "as a,b"),
        (["compare", "--used-by", "run"], "no composed model at run", ""),
        (["compare", "--base", "composed"], "composed is a composed model", "its own base"),
        (["compare", "--base", "text"], "text holds no model", ""),
        (["compare", "--library", "empty"], "there is no skill to compare", ""),
        (["merge", "prose,cod", "--name", "x"], "no skill 'cod'", "code"),
        (["merge", "prose,code", "--name", "code"], "has a skill 'code' already", ""),
        (["merge", "prose,code", "--name", "a b"], "'a b' cannot be a skill's name", ""),
        (["merge", "prose,code", "--name", "x", "--weights", "1"], "2 skills need as many weights", ""),
        (["merge", "prose,code", "--name", "x", "--weights", "1;2"], "--weights '1;2' is not numbers", ""),
        (["merge", "prose,code", "--name", "x", "--weights", "0,0"], "nothing to merge", ""),
        (["import", "nowhere"], "no adapter at nowhere", "PEFT"),
        (["import", "original"], "no adapter at original", "such as original/code"),
        (["import", "run"], "no adapter at run", ""),
        (["import", "adapter", "--name", "code"], "has a skill 'code' already", ""),
        (["import", "adapter", "--base", "nowhere"], "nowhere", ""),
        (["import", "adapter", "--library", "run"], "run is a run, not a library", ""),
        (["add", "nowhere"], "no skill at nowhere", ""),
        (["add", "run"], "no skill at run", ""),
        (["add", "composed"], "no skill at composed", "composed/skills is a library"),
        (["list", "--library", "nowhere"], "no library at nowhere", "--library"),
        (["list", "--library", "small.toml"], "small.toml is a file, not a library", ""),
        (["list", "--library", "run"], "run is a run, not a library", ""),
        (["list", "--library", "text"], "text is no library", ""),
        (["list", "--library", "composed"], "composed is no library", "composed/skills is a library"),
        (["list", "--library", "skills/code"], "skills/code is a skill, not a library", "the folder"),
        (["verify", "--library", "nowhere"], "no library at nowhere", ""),
        (["export", "code", "--out", "x", "--library", "nowhere"], "no library at nowhere", ""),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    place: Path, library: Path, skill: Command, arguments: list[str], named: str, hint: str
) -> None:
    (place / "empty").mkdir(exist_ok=True)
    before, beside = tree(library), {path.name for path in place.iterdir()}
    refused(skill(*arguments), named, hint)
    assert tree(library) == before
    assert {path.name for path in place.iterdir()} == beside


def test_the_skills_of_a_composed_model_can_be_looked_at(library: Path, skill: Command) -> None:
    assert [
        row["name"] for row in json.loads(skill("list", "--library", "composed/skills", "--json").stdout)
    ] == ["prose"]
