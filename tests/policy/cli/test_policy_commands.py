"""`expertise policy …`: from recorded behaviour to a composed policy that acts, and mistakes on the way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from expertise.cli.policy import COMMANDS
from expertise.cli.policy.options import data_setting, seeds_of
from expertise.cli.policy.table import print_table
from expertise.errors import DataError, DiskError, RecipeError
from expertise.policy import load
from expertise.policy.data import read
from expertise.policy.data.shipped import located
from expertise.policy.envs import bullet
from expertise.policy.evaluate import EvaluationConfig
from expertise.policy.evaluation import write_film
from expertise.policy.learn import RECIPES, recipe_of
from expertise.policy.seeds import evaluate_seeds
from expertise.runs import recipe as recipes

Command = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]

QUICK = """
[train]
steps = 4
batch_size = 16
threads = 1
device = "cpu"
"""
BASE = f"""
kind = "policy"
policy.network = {{name = "mlp", hidden = 16, num_layers = 2, time_features = 4}}
{QUICK}"""
CRITICS = f"""
kind = "critics"
critics = {{reward = {{hidden = [8]}}, safety = {{hidden = [8]}}}}
{QUICK}"""
SKILL = f"""
kind = "skill"
base = "runs/base"
critics = "runs/critics"
name = "?"
{QUICK}"""


def fine(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def refused(done: subprocess.CompletedProcess[str], message: str, hint: str = "") -> None:
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr
    assert any(line.startswith(f"error: {message}") for line in lines), done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def workshop(tmp_path: Path, write_demonstrations: Write, toy: type) -> Path:
    """A folder with data of two tasks, and recipes."""
    for task in ("left", "right"):
        write_demonstrations(task)
    for name, text in (("base", BASE), ("critics", CRITICS), ("skill", SKILL)):
        (tmp_path / f"{name}.toml").write_text(text)
    return tmp_path


@pytest.fixture
def skilled(workshop: Path, expertise: Command) -> Path:
    """The same with critics, a base and two skills, learnt by commands."""
    both = ("--data", "left.npz", "--data", "right.npz")
    done = fine(expertise("policy", "learn", "critics.toml", *both))
    assert done.stdout.startswith("runs/critics: critics, step 4\n")
    assert re.search(r"^  reward +v -?[\d.e-]+  v_least ", done.stdout, re.MULTILINE)
    fine(expertise("policy", "learn", "base.toml", *both, "--run", "runs/base"))
    for task, weights in (("left", "uniform"), ("right", "safety")):
        settings = ("--set", f"name={task}", "--set", f"weights.name={weights}", "--run", f"runs/{task}")
        fine(expertise("policy", "learn", "skill.toml", "--data", f"{task}.npz", *settings))
    return workshop


COMPOSE = ("policy", "compose", "--base", "runs/base", "--steps", "4", "--batch-size", "16", "--threads", "1")
BOTH = ("--skill", "left", "--skill", "right")
ACT = ("--environment", "toy/right", "--episodes", "3")


def test_from_data_to_a_composed_policy_that_acts(skilled: Path, expertise: Command) -> None:
    few = ("--data", "right.npz", "--max-cost", "40", "--min-return", "-100", "--trajectories", "2")
    done = fine(expertise(*COMPOSE, *BOTH, *few, "--run", "runs/psec", "--seed", "3", "--json"))
    made = json.loads(done.stdout)
    assert (made["level"], made["skills"], made["run"], made["step"]) == (
        "parameters", ["left", "right"], "runs/psec", 4,
    )  # fmt: skip
    assert set(made["evaluation"]) == {"noise_error", "transitions"}
    recipe = recipes.parse((skilled / "runs/psec/recipe.toml").read_text(), "recipe")
    assert recipe["data"][0].items() >= {
        "path": "right.npz", "layout": "auto", "max_cost": 40.0, "min_return": -100.0, "trajectories": 2,
        "seed": 0,
    }.items()  # fmt: skip
    assert recipe["train"]["seed"] == 3

    options = (*ACT, "--seeds", "0,7", "--cost-limit", "5", "--candidates", "2")
    done = fine(expertise("policy", "evaluate", "runs/psec", *options, "--out", "found.json", "--json"))
    short, whole = json.loads(done.stdout), json.loads((skilled / "found.json").read_text())
    assert {key: value for key, value in short.items() if key != "seeds"} == {
        key: value for key, value in whole.items() if key != "seeds"
    }
    assert short["seeds"]["7"] == {"summary": whole["seeds"]["7"]["summary"]}
    assert (whole["environment"], whole["episodes"], whole["cost_limit"]) == ("toy/right", 3, 5.0)
    assert (whole["candidates"], whole["pick"], whole["names"]) == (2, None, ["left", "right"])
    means = [whole["seeds"][seed]["summary"]["return"] for seed in ("0", "7")]
    assert whole["summary"]["return"] == pytest.approx(np.mean(means))
    assert whole["summary"]["return_error"] == pytest.approx(abs(means[0] - means[1]) / 2)
    assert {"cost", "normalized_cost", "success", "alpha_left", "alpha_right"} <= set(whole["summary"])
    assert len(whole["seeds"]["0"]["episodes"]) == 3
    assert len(whole["seeds"]["0"]["traces"][0]["alpha"]) == whole["seeds"]["0"]["episodes"][0]["steps"]

    drawn = ("--parallel", "1", "--page", "shown")
    again = fine(expertise("policy", "evaluate", "runs/psec", *options, *drawn))
    title, *rows, page = again.stdout.splitlines()
    assert page == "shown/policy.html"
    assert "runs/psec" in (skilled / page).read_text()
    assert [row.split("  ")[0] for row in rows] == ["seed 0", "seed 7", "all"]
    for column in ("return", "cost / limit", "success", "alpha left"):
        assert column in title
    assert f"{whole['summary']['return']:.1f} ± {whole['summary']['return_error']:.1f}" in rows[2]


def test_several_policies_stand_side_by_side(skilled: Path, expertise: Command) -> None:
    fine(expertise(*COMPOSE, *BOTH, "--data", "right.npz", "--run", "runs/psec"))
    together = ("policy", "evaluate", "BC=runs/base", "mine=runs/psec", "runs/left", *ACT)
    page_of = ("--page", "shown", "--safety", "left")
    done = fine(expertise(*together, "--seeds", "0,1", *page_of, "--out", "found.json"))
    _, *rows, page = done.stdout.splitlines()
    assert [row.split("  ")[0] for row in rows] == ["BC", "mine", "runs/left"]
    whole = json.loads((skilled / "found.json").read_text())
    assert list(whole["policies"]) == ["BC", "mine", "runs/left"]
    assert whole["policies"]["BC"]["policy"] == "runs/base"
    alone = json.loads(
        fine(expertise("policy", "evaluate", "runs/base", *ACT, "--seeds", "0,1", "--json")).stdout
    )
    assert whole["policies"]["BC"]["summary"] == alone["summary"]
    record = json.loads((skilled / "shown/policy.json").read_text())
    assert (record["ours"], record["trace"]["method"], record["trace"]["safety"]) == ("mine", "mine", "left")
    assert [skill["name"] for skill in record["skills"]] == ["left", "right"]
    assert page == "shown/policy.html"
    assert "How alike the skills are" in (skilled / page).read_text()
    assert "the mean weight of left is" in (skilled / page).read_text().lower()
    refused(expertise(*together, "--safety", "lift"), "--safety lift: no policy", "left, right")


def test_which_policies_act_is_said_clearly(skilled: Path, expertise: Command) -> None:
    act = ("policy", "evaluate")
    refused(
        expertise(*act, "runs/base", "runs/base", *ACT), "two policies are called 'runs/base'", "first=runs/a"
    )
    refused(expertise(*act, "BC=", *ACT), "'BC=' lacks a name or a run", "PSEC=runs/psec")
    refused(expertise(*act, "BC=runs/base", "runs/none", *ACT), "no policy at runs/none")
    refused(expertise(*act, "runs/base", "runs/left", *ACT, "--video", "f.gif"), "--video films one policy")
    refused(expertise(*act, "runs/base", *ACT, "--cost-limit", "inf"), "cost_limit must be a finite number")


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        (["--weights", "0.3,0.7"], "composed", ("left", "right")),
        (["--alpha", "top_p"], "composed", ("left", "right")),
        (["--level", "noise"], "nsec", ("base", "left", "right")),
        (["--level", "actions", "--alpha", "fixed", "--policy", "runs/base", "--set", "with_base=false"],
         "asec", ("base", "left", "right")),
    ],
)  # fmt: skip
def test_every_way_to_compose(
    skilled: Path, expertise: Command, options: list[str], kind: str, names: tuple[str, ...]
) -> None:
    fine(expertise(*COMPOSE, *BOTH, "--data", "right.npz", "--run", "runs/made", *options))
    policy = load("runs/made")
    assert (policy.kind, policy.names) == (kind, names)
    if "--weights" in options:
        import torch

        assert policy.weigh(torch.zeros(1, 3)).tolist() == [pytest.approx([0.3, 0.7])]  # type: ignore[union-attr]


def test_a_composition_that_export_would_refuse_is_refused_at_once(skilled: Path, expertise: Command) -> None:
    for level in ("noise", "actions"):
        made = ("--policy", "runs/left", "--level", level, "--data", "right.npz", "--run", "runs/made")
        refused(expertise(*COMPOSE, *made), "a composition of runs/left could not be exported", "--skill")
        assert not (skilled / "runs/made").exists(), "before anything is trained"
        whole = ("--policy", "runs/base", "--skill", "left", "--set", "with_base=false", "--level", level)
        fine(expertise(*COMPOSE, *whole, "--data", "right.npz", "--run", f"runs/{level}"))
        fine(expertise("policy", "export", f"runs/{level}", "--to", "safetensors", "--out", f"out/{level}"))


def test_skills_of_a_base_that_was_trained_on_are_forced(skilled: Path, expertise: Command) -> None:
    learn = ("policy", "learn", "base.toml", "--data", "left.npz", "--run", "runs/later")
    fine(expertise(*learn, "--set", "train.seed=1"))
    later = ("policy", "compose", "--base", "runs/later", *COMPOSE[4:], *BOTH, "--data", "right.npz")
    refused(expertise(*later, "--run", "runs/x"), "skill left was learnt on another base", "--force")
    fine(expertise(*later, "--run", "runs/x", "--force"))
    assert load("runs/x").names == ("left", "right")
    beside = (
        "policy", "learn", "skill.toml", "--data", "right.npz", "--run", "runs/beside",
        *("--set", "name=beside", "--set", "base=runs/later", "--set", 'beside=["left"]'),
        *("--set", "beside_weights=[1.0]"),
    )  # fmt: skip
    refused(expertise(*beside), "skill left was learnt on another base", "force = true")
    fine(expertise(*beside, "--set", "force=true"))


def test_given_weights_need_no_data(skilled: Path, expertise: Command) -> None:
    given = (*COMPOSE, *BOTH, "--weights", "0.3,0.7", "--run", "runs/made")
    fine(expertise(*given))
    policy = load("runs/made")
    with_data = (*COMPOSE, *BOTH, "--weights", "0.3,0.7", "--data", "right.npz", "--run", "runs/same")
    fine(expertise(*with_data))
    same = load("runs/same").state_dict()
    assert all(same[name].equal(tensor) for name, tensor in policy.state_dict().items())
    fine(expertise(*given))  # and once more: all is there
    for level, kind in (("noise", "nsec"), ("actions", "asec")):
        options = ("--weights", "0.2,0.3,0.5", "--level", level, "--run", f"runs/{kind}")
        fine(expertise(*COMPOSE, *BOTH, *options))
        assert load(f"runs/{kind}").kind == kind
    refused(expertise(*COMPOSE, *BOTH, "--run", "runs/none"), "--data is missing", "or give --weights")
    options = ("--set", "weights.name=safety", "--set", "critics=runs/critics", "--run", "runs/weighed")
    fine(expertise(*COMPOSE, *BOTH, "--weights", "0.3,0.7", *options))
    learnt = ("--weights", "0.3,0.7", "--set", "alpha.learn=true", "--run", "runs/none")
    refused(expertise(*COMPOSE, *BOTH, *learnt), "the recipe names no data")
    assert not (skilled / "runs/none").exists()


def test_a_composition_picks_as_it_is_told(skilled: Path, expertise: Command) -> None:
    acting = ("--candidates", "3", "--pick", "min-qc", "--set", "critics=runs/critics")
    fine(expertise(*COMPOSE, *BOTH, "--data", "right.npz", "--run", "runs/made", *acting))
    policy = load("runs/made")
    assert (policy.num_candidates, policy.pick) == (3, "min-qc")


def test_a_run_goes_on_by_the_same_command(workshop: Path, expertise: Command) -> None:
    learn = ("policy", "learn", "base.toml", "--data", "left.npz")
    fine(expertise(*learn, "--set", "train.steps=2"))
    result = json.loads(fine(expertise(*learn, "--json")).stdout)
    assert (result["recipe"], result["kind"], result["step"]) == ("base", "policy", 4)
    refused(expertise(*learn, "--set", "train.batch_size=8"), "runs/base was made with train.batch_size = 16")


def test_a_film(skilled: Path, expertise: Command) -> None:
    pytest.importorskip("imageio", reason="`make setup-policy` installs it")
    done = fine(expertise("policy", "evaluate", "runs/base", *ACT, "--seeds", "0,1", "--video", "film.gif"))
    assert "film: film.gif" in done.stderr
    assert (skilled / "film.gif").read_bytes()[:3] == b"GIF"


def test_no_film_where_no_picture_can_be_taken(
    skilled: Path, expertise: Command, toy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("imageio", reason="`make setup-policy` installs it")
    from expertise.errors import DeviceError

    def no_picture(self: object, width: int, height: int) -> None:
        raise DeviceError("nothing can be drawn here")

    monkeypatch.setattr(toy, "frame", no_picture)
    done = fine(expertise("policy", "evaluate", "runs/base", *ACT, "--video", "film.mp4"))
    assert "no film: nothing can be drawn here" in done.stderr
    assert not (skilled / "film.mp4").exists()


def test_what_is_wrong_with_learning_is_said_in_a_line(workshop: Path, expertise: Command) -> None:
    learn = ("policy", "learn")
    refused(expertise(*learn, "policy-bse"), "no recipe 'policy-bse'", "did you mean 'policy-base'?")
    refused(expertise(*learn, "demo"), "the recipe lacks kind", "known are: policy, direct, critics")
    data = ("--data", "left.npz")
    refused(expertise(*learn, "base.toml"), "the recipe lacks data")
    refused(expertise(*learn, "base.toml", "--data", "lost.npz"), "no file at lost.npz")
    refused(
        expertise(*learn, "base.toml", "--data", "shipped:BalRun"), "no shipped data 'BalRun'", "'BallRun'"
    )
    key = "policy.netwerk.name=mlp"
    refused(expertise(*learn, "base.toml", *data, "--set", key), "unknown key policy.netwerk", "'network'")
    kind = expertise(*learn, "base.toml", *data, "--set", "kind=skil")
    refused(kind, "kind: unknown 'skil'", "did you mean 'skill'?")
    for name in ("../x", "a/b", ""):
        bad = expertise(*learn, "skill.toml", *data, "--set", f'name="{name}"')
        refused(bad, f"{name!r} cannot be a skill's name")
    refused(expertise(*learn, "skill.toml", *data, "--set", "name=x"), "no policy at runs/base")
    assert not (workshop / "runs").exists(), "nothing is written"
    refused(
        expertise("train", "policy-base"), "policy-base is a recipe of policies", "policy learn policy-base"
    )


def test_what_is_wrong_with_composing_is_said_in_a_line(skilled: Path, expertise: Command) -> None:
    compose = (*COMPOSE, "--data", "right.npz", "--run", "runs/made")
    refused(expertise(*compose), 'level "parameters" composes skills')
    refused(expertise(*compose, "--skill", "lefd"), "no skill 'lefd' in skills", "did you mean 'left'?")
    both = expertise(*compose, *BOTH, "--alpha", "top_p", "--weights", "1,1")
    refused(both, "--weights are constant, --alpha top_p is not")
    refused(expertise(*compose, *BOTH, "--weights", "1,x"), "--weights '1,x' is not numbers")
    one = (*COMPOSE, *BOTH, "--weights", "1", "--run", "runs/made")
    refused(expertise(*one), "alpha.values (--weights) has 1 numbers, and the parts are left, right")
    refused(expertise(*one, "--level", "noise"), "alpha.values (--weights)", "with_base = false")
    refused(expertise(*compose, *BOTH, "--alpha", "topp"), "alpha.name: unknown 'topp'", "'top_p'")
    refused(expertise(*compose, *BOTH, "--level", "noyse"), "level: ")
    refused(expertise(*compose, *BOTH, "--pick", "min-cq"), "unknown pick 'min-cq'", "'min-qc'")
    refused(expertise(*compose, *BOTH, "--min-return", "1e9"), "right.npz has no trajectory within")
    for option in ("--max-cost", "--min-return"):
        refused(expertise(*compose, *BOTH, option, "nan"), f"{option} must be a finite number, not nan")
    assert not (skilled / "runs/made").exists()


def test_what_is_wrong_with_acting_is_said_in_a_line(skilled: Path, expertise: Command) -> None:
    act = ("policy", "evaluate", "runs/base", "--environment")
    refused(expertise("policy", "evaluate", "runs/lost", *ACT), "no policy at runs/lost")
    refused(expertise("policy", "evaluate", "runs/critics", *ACT), "runs/critics holds no policy")
    refused(expertise(*act, "toy"), "'toy' is no name of an environment")
    refused(expertise(*act, "toi/left"), "unknown", "'toy'")
    refused(expertise(*act, "toy/right", "--seeds", "0,x"), "--seeds '0,x' are not whole numbers", "as 0,1,2")
    refused(expertise(*act, "toy/right", "--seeds", "1,1"), "seeds must be different ones")
    refused(expertise(*act, "toy/right", "--pick", "max-q"), "pick 'max-q' needs a critic of reward")
    refused(
        expertise(*act, "toy/right", "--video", "film.avi"), "--video film.avi: a film ends in .mp4 or .gif"
    )


def test_wrong_places_for_results_are_refused_before_any_episode(skilled: Path, expertise: Command) -> None:
    pytest.importorskip("imageio", reason="`make setup-policy` installs it")
    (skilled / "x.txt").write_text("mine")
    (skilled / "folder.mp4").mkdir()
    wrong = [
        ("--out", "runs", "cannot write runs: Is a directory"),
        ("--out", "x.txt/z", "cannot write x.txt/z: Not a directory"),
        ("--video", "x.txt/y.mp4", "cannot write x.txt/y.mp4: Not a directory"),
        ("--video", "folder.mp4", "cannot write folder.mp4: Is a directory"),
        ("--page", "x.txt", "cannot write x.txt/policy.html: Not a directory"),
    ]
    for option, place, message in wrong:
        done = expertise("policy", "evaluate", "runs/base", *ACT, option, place)
        refused(done, message)
        assert "steps/s" not in done.stderr
    export = ("policy", "export", "runs/base", "--to", "safetensors", "--out")
    refused(expertise(*export, "x.txt/z"), f"cannot write {skilled / 'x.txt/z'}")
    if Path("/proc/self").exists():
        refused(expertise(*export, "/proc/nope"), "cannot write /proc/nope: ")


def test_a_film_that_ffmpeg_cannot_write_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio = pytest.importorskip("imageio", reason="`make setup-policy` installs it")
    frames = [np.zeros((32, 32, 3), np.uint8)] * 2

    def fail(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"part")
        raise OSError("broken pipe\n\nFFMPEG COMMAND:\n…")

    monkeypatch.setattr(imageio, "mimwrite", fail)
    with pytest.raises(DiskError, match=r"^cannot write .*film\.mp4: ffmpeg fails there$"):
        write_film(frames, tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_data_that_is_wrong(workshop: Path, expertise: Command) -> None:
    (workshop / "data.toml").write_text(
        '[[datasets]]\nname = "d"\n[[datasets.rollout]]\nteacher = "random"\n'
    )
    collect = ("policy", "collect", "data.toml", "--out", "made")
    refused(expertise(*collect), "unknown key datasets.0.rollout", "did you mean 'rollouts'?")
    refused(expertise("policy", "collect", "lost.toml", "--out", "made"), "no recipe at lost.toml")
    assert not (workshop / "made").exists()


def test_collecting(workshop: Path, expertise: Command) -> None:
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    (workshop / "data.toml").write_text(
        '[[datasets]]\nname = "chance"\n[[datasets.rollouts]]\n'
        'teacher = "random"\nenvironment = "toy/left"\nepisodes = 3\n'
    )
    collect = ("policy", "collect", "data.toml", "--out", "made")
    found = json.loads(fine(expertise(*collect, "--json")).stdout)
    assert found == {"recipe": "data", "folder": "made", "data": {"chance": "made/chance.hdf5"}}
    assert len(read(workshop / "made" / "chance.hdf5").trajectories()) == 3
    assert fine(expertise(*collect)).stdout == "made/chance.hdf5\n"


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    workshop: Path, expertise: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("h5py", "gymnasium", "pybullet", "bullet_safety_gym"):
        monkeypatch.setitem(sys.modules, name, None)
    bullet._gymnasium.cache_clear()  # another test may have found the packages before
    demo = expertise("policy", "demo")
    refused(
        demo, "an environment of Bullet-Safety-Gym needs packages that are not installed", "make setup-safety"
    )
    assert not (workshop / "runs").exists(), "before anything is trained"
    shipped = expertise("policy", "learn", "base.toml", "--data", "shipped:BallRun")
    refused(shipped, "", "make setup-policy")


PAPER = ("policy-critics", "policy-base", "policy-reward-skill", "policy-safety-skill", "policy-compose")
OWN = (
    "policy-own-critics", "policy-own-base", "policy-own-reward", "policy-own-safety", "policy-own-compose",
)  # fmt: skip


@pytest.mark.parametrize("names", [PAPER, OWN])
def test_shipped_recipes_follow_each_other(names: tuple[str, ...]) -> None:
    made, skills = set(), set()
    for name in names:
        recipe = recipe_of(recipes.parse(recipes.shipped()[name], name))
        for needed in (getattr(recipe, "critics", ""), getattr(recipe, "base", "")):
            assert not isinstance(needed, str) or not needed or needed in made
        assert set(getattr(recipe, "skills", [])) <= skills
        made.add(f"runs/{name}")
        skills.add(getattr(recipe, "name", ""))


def test_every_recipe_of_policies_is_one_of_the_papers_or_for_data_of_ones_own() -> None:
    there = {name for name in recipes.shipped() if name.startswith("policy-")}
    assert there == {*PAPER, *OWN, "policy-collect"}
    assert len(RECIPES) == 5


def test_a_recipe_of_data_is_named_by_the_command_that_takes_it(expertise: Command) -> None:
    refused(
        expertise("policy", "learn", "policy-collect"), "the recipe makes data", "expertise policy collect"
    )
    refused(
        expertise("train", "policy-collect"), "policy-collect is", "expertise policy collect policy-collect"
    )
    refused(expertise("policy", "learn", "policy-own-base"), "the recipe names no data", "--data")


def test_help_says_what_to_type(expertise: Command) -> None:
    listed = fine(expertise("policy", "--help")).stdout
    for name in COMMANDS:
        assert name in listed
        assert f"Example: expertise policy {name}" in fine(expertise("policy", name, "--help")).stdout
    # None of the commands loads anything heavy before it is used.
    code = "import expertise.cli.policy as p, sys; list(p.COMMANDS.values()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"torch", "numpy", "pydantic", "matplotlib", "gymnasium", "h5py"}


def test_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    assert seeds_of("0, 12") == [0, 12]
    for wrong in ("", "1,", "-1", "1.5"):
        with pytest.raises(RecipeError, match=r"^--seeds "):
            seeds_of(wrong)
    path = 'odd "name" ü\\.npz'
    setting = data_setting([path, "b"], max_cost=5.0, min_return=None)
    expected = {"data": [{"path": path, "max_cost": 5.0}, {"path": "b", "max_cost": 5.0}]}
    assert recipes.override({}, [setting]) == expected
    print_table({"a": {"return": 12.345, "return_error": 1.0}, "longer": {"return": 1.0, "alpha_x": 0.5}})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["return", "alpha", "x"], ["a", "12.3", "±", "1.0"],
                                                ["longer", "1.0", "0.50"]]  # fmt: skip
    assert len({len(line.rstrip()) for line in (lines[0], lines[2])}) == 1, "columns end together"


def test_shipped_data_are_found_by_name() -> None:
    assert Path(located("shipped:BallRun")).stat().st_size < 1e6
    assert located("~/x.npz") == str(Path("~/x.npz").expanduser())
    with pytest.raises(DataError, match="no shipped data 'x'"):
        located("shipped:x")


def test_seeds_must_be_there(skilled: Path) -> None:
    with pytest.raises(RecipeError, match="at least one"):
        evaluate_seeds(load("runs/base"), EvaluationConfig(environment="toy/left"), [])


def test_the_demo_leaves_a_folder_of_someone_else_alone(tmp_path: Path, expertise: Command) -> None:
    for module, target in (("h5py", "policy"), ("bullet_safety_gym", "safety")):
        pytest.importorskip(module, reason=f"`make setup-{target}` installs it")
    for name in ("letter.txt", "psec/letter.txt", "library/letter.txt"):
        path = tmp_path / Path(name).stem / name
        path.parent.mkdir(parents=True)
        path.write_text("dear")
        folder = Path(name).stem
        refused(expertise("policy", "demo", "--folder", folder), f"{folder} is not a demo's folder")
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "file").write_text("dear")
    refused(expertise("policy", "demo", "--folder", "file"), "file is a file, not a folder")
    (tmp_path / "mine" / "critics").mkdir(parents=True)
    (tmp_path / "mine" / "critics" / "letter.txt").write_text("dear")
    done = expertise("policy", "demo", "--folder", "mine")
    refused(done, "mine/critics is not a run and is not empty")
    assert "1 of 5" not in done.stderr


def test_the_demo(tmp_path: Path, expertise: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, target in (("h5py", "policy"), ("bullet_safety_gym", "safety")):
        pytest.importorskip(module, reason=f"`make setup-{target}` installs it")
    from expertise.policy import demo
    from expertise.policy.network import PlainNetwork

    tiny = demo.DemoConfig(
        critic_steps=3,
        base_steps=3,
        skill_steps=3,
        alpha_steps=3,
        batch_size=16,
        episodes=2,
        network=PlainNetwork.Config(hidden=16, num_layers=2),
        film_every=50,
    )
    monkeypatch.setattr(demo, "DemoConfig", lambda: tiny)
    result = json.loads(fine(expertise("policy", "demo", "--folder", "shown", "--json")).stdout)
    assert list(result["policies"]) == ["base", "reward skill", "safety skill", "PSEC"]
    assert {"return", "cost", "normalized_cost", "alpha_safety", "run"} <= set(result["policies"]["PSEC"])
    assert result.pop("report") == "shown/policy.html"
    assert "Safe control" in (tmp_path / "shown" / "policy.html").read_text()
    assert json.loads((tmp_path / "shown" / "results.json").read_text()) == result
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shown").rglob("*.safetensors")}
    again = fine(expertise("policy", "demo", "--folder", "shown"))
    assert "cost / limit" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained twice"
    assert json.loads((tmp_path / "shown" / "results.json").read_text()) == result
