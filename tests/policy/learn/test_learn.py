"""One learner: each kind of recipe makes a run that acts, goes on exactly, and is refused when it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expertise.errors import DataError, RecipeError, RunError, SkillError
from expertise.policy import DiffusionPolicy, load, load_critics
from expertise.policy.alpha import ALPHA
from expertise.policy.baselines.noise import NoiseComposition
from expertise.policy.compose import ComposedPolicy
from expertise.policy.growing import GrowingPolicy, GrowthConfig
from expertise.policy.learn import RECIPES, learn, recipe_of
from expertise.runs import checkpoint
from expertise.runs import recipe as recipes
from expertise.skills.library import Library
from expertise.skills.skill import Skill

Write = Callable[..., Path]
TRAIN = {"steps": 4, "batch_size": 16, "device": "cpu", "threads": 1, "log_every": 2}
NETWORK = {"network": {"name": "mlp", "hidden": 16, "num_layers": 2, "time_features": 4}}


class Workshop:
    """A folder with data of two tasks, and runs that are made in it."""

    def __init__(self, folder: Path, write: Write) -> None:
        self.folder = folder
        self.data = {task: [{"path": str(write(task))}] for task in ("left", "right")}
        self.library = Library(folder / "skills")
        self.said: list[str] = []

    def recipe(self, kind: str, data: str = "left", **fields: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {"kind": kind, "data": self.data[data], "train": TRAIN}
        if kind == "policy":
            defaults["policy"] = NETWORK
        if kind in ("skill", "composition"):
            defaults |= {"base": str(self.folder / "base"), "library": str(self.library.path)}
        return {**defaults, **fields}

    def make(self, run: str, kind: str, data: str = "left", **fields: Any) -> Path:
        learn(recipe_of(self.recipe(kind, data, **fields)), self.folder / run, self.said.append)
        return self.folder / run

    def ingredients(self) -> None:
        """A base, critics, two skills, and a policy from scratch."""
        self.make("base", "policy")
        both = {"reward": {"hidden": [8]}, "safety": {"hidden": [8]}}
        self.make("critics", "critics", data="right", critics=both)
        self.make("go", "skill", data="right", name="go", purpose="goes to the right")
        weights = {"name": "safety"}
        self.make(
            "stay", "skill", data="right", name="stay", weights=weights, critics=f"{self.folder}/critics"
        )
        self.make("scratch", "policy", data="right")


@pytest.fixture
def workshop(tmp_path: Path, write_demonstrations: Write) -> Workshop:
    """Empty but for data."""
    return Workshop(tmp_path, write_demonstrations)


def content(run: Path) -> dict[str, bytes]:
    """All that recipe and seed determine."""
    found = checkpoint.latest(run)
    assert found is not None
    return {p.name: p.read_bytes() for p in (found.path / "model.safetensors", run / "metrics.jsonl")}


def test_every_recipe_can_be_written_and_read_and_describes_its_fields(workshop: Workshop) -> None:
    more: dict[str, dict[str, Any]] = {
        "critics": {"critics": {"reward": {}}},
        "skill": {"name": "go"},
        "composition": {"skills": ["go"]},
    }
    for kind in RECIPES:
        recipe = recipe_of(workshop.recipe(kind, **more.get(kind, {})))
        assert recipes.build(recipes.parse(recipes.to_toml(recipe), "here"), type(recipe)) == recipe
        assert recipe.kind == kind


def test_the_whole_of_psec_and_its_baselines_is_learnt_and_acts(workshop: Workshop) -> None:
    workshop.ingredients()
    scratch = [str(workshop.folder / "scratch")]
    rows: dict[str, dict[str, Any]] = {
        "PSEC": {
            "skills": ["go", "stay"],
            "critics": str(workshop.folder / "critics"),
            "num_candidates": 4,
            "pick": "min-qc",
        },
        "fixed": {"skills": ["go", "stay"], "alpha": {"name": "fixed", "learn": True}},
        "top-p": {"skills": ["go", "stay"], "alpha": {"name": "top_p"}},
        "leaning": {"skills": ["go", "stay"], "lean": {"skill": "stay"}},
        "NSEC": {"level": "noise", "policies": scratch},
        "NSEC, as released": {"level": "noise", "policies": scratch, "loss": "action"},
        "ASEC": {"level": "actions", "policies": scratch},
        "NSEC (LoRA)": {"level": "noise", "skills": ["go", "stay"], "with_base": False},
        "ASEC (LoRA)": {"level": "actions", "skills": ["go"]},
    }
    names = {"NSEC": ("base", "scratch"), "NSEC (LoRA)": ("go", "stay"), "ASEC (LoRA)": ("base", "go")}
    seen = torch.randn(4, 3)
    for row, fields in rows.items():
        policy = load(workshop.make(row, "composition", data="right", **fields))
        assert policy.act(seen).shape == (4, 2)
        alpha = policy.weigh(seen)
        assert alpha is not None
        start = 1 / alpha.shape[1]
        assert row == "top-p" or not torch.equal(alpha, torch.full_like(alpha, start)), (
            f"{row} learnt nothing"
        )
        assert policy.names == names.get(row, policy.names)
    safe, dice = load(workshop.folder / "PSEC"), torch.Generator
    assert (safe.num_candidates, safe.pick) == (4, "min-qc")
    by_hand = safe.act(seen, num_candidates=4, pick="min-qc", generator=dice().manual_seed(0))
    assert torch.equal(safe.act(seen, generator=dice().manual_seed(0)), by_hand)
    assert load(workshop.make("BC", "direct", data="right")).kind == "direct"
    joint = [*workshop.data["left"], *workshop.data["right"]]
    learn(
        recipe_of({**workshop.recipe("policy"), "data": joint}),
        workshop.folder / "Joint",
        workshop.said.append,
    )
    assert any("12 trajectories" in line for line in workshop.said)
    iql = workshop.make("IQL", "direct", weights={"name": "advantage"}, critics=f"{workshop.folder}/critics")
    assert load(iql).critics is not None


def test_a_skill_comes_into_the_library_with_its_card_and_as_it_acts(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    run = workshop.make("go", "skill", data="right", name="go", purpose="goes to the right")
    base, card = load(workshop.folder / "base"), workshop.library.card("go")
    assert isinstance(base, DiffusionPolicy)
    assert card is not None
    assert (card.purpose, card.scale_convention, card.ranks) == ("goes to the right", "raw", (8,))
    assert card.metrics["noise_error"] > 0
    skill = workshop.library.load("go", base.acting)
    seen, noise = torch.randn(5, 3), base.draw(5, 1)
    alone = ComposedPolicy(base, [skill], recipe_of(workshop.recipe("composition", skills=["go"])).alpha)  # type: ignore[attr-defined]
    torch.testing.assert_close(alone.act(seen, noise=noise), load(run).act(seen, noise=noise))
    assert not torch.allclose(alone.act(seen, noise=noise), base.act(seen, noise=noise), atol=1e-3)


def test_a_run_goes_on_exactly_and_follows_from_its_seed(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    constant = {"schedule": "constant"}

    def skill(run: str, steps: int, seed: int = 0) -> dict[str, bytes]:
        train = {**TRAIN, "steps": steps, "save_every": 2, "evaluate_every": 2, "seed": seed}
        library = str(workshop.folder / f"{run}-skills")
        workshop.make(run, "skill", data="right", name="go", train=train, optimizer=constant, library=library)
        return content(workshop.folder / run)

    whole = skill("whole", 8)
    assert skill("again", 8) == whole
    assert skill("other", 8, seed=1) != whole
    # Stopped after 4 steps, before it came into the library.
    skill("halved", 4)
    Library(workshop.folder / "halved-skills").remove("go")
    assert skill("halved", 8) == whole
    files = [
        (workshop.folder / f"{run}-skills" / "go" / "adapter_model.safetensors").read_bytes()
        for run in ("whole", "halved")
    ]
    assert files[0] == files[1]


def test_a_composition_goes_on_exactly(workshop: Workshop) -> None:
    workshop.ingredients()
    runs = []
    for name, steps in (("whole", [6]), ("halved", [2, 6])):
        for number in steps:
            train = {**TRAIN, "steps": number, "save_every": 2, "evaluate_every": 2}
            workshop.make(name, "composition", skills=["go", "stay"], train=train)
        runs.append(content(workshop.folder / name))
    assert runs[0] == runs[1]


def test_a_run_goes_on_longer_and_in_other_pieces(workshop: Workshop) -> None:
    every = TRAIN | {"log_every": 1}
    whole = workshop.make("whole", "policy", train=every)
    cut = workshop.make("cut", "policy", train=every | {"steps": 2}, optimizer={"schedule_steps": 4})
    workshop.make("cut", "policy", train=every | {"accumulation": 4}, optimizer={"schedule_steps": 4})
    assert not [line for line in workshop.said if "learning rate" in line]
    one, other = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        for run in (whole, cut)
    )
    losses = [[line["loss"] for line in lines if line["kind"] == "train"] for lines in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    # A cosine ends at 0 here: that rate is not worth keeping.
    workshop.make("whole", "policy", train=every | {"steps": 8})
    (note,) = [line for line in workshop.said if "learning rate" in line]
    assert "from 0 to 0.00015 after step 4" in note
    assert "--set" not in note


def test_learning_a_composition_leaves_skills_and_base_on_disk_as_they_are(workshop: Workshop) -> None:
    workshop.ingredients()
    places = [workshop.library.path, workshop.folder / "base"]

    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}

    before = everything()
    skills = [path for path in before if path.name == "adapter_model.safetensors"]
    assert {path.parent.name for path in skills} == {"go", "stay"}
    assert any(path.name == "model.safetensors" for path in before)
    runs = {"context": workshop.make("PSEC", "composition", data="right", skills=["go", "stay"])}
    fields = {"skills": ["go", "stay"], "level": "noise", "loss": "action"}
    runs["NSEC"] = workshop.make("NSEC", "composition", data="right", **fields)
    assert everything() == before
    for run in runs.values():
        alpha = load(run).weigh(torch.randn(4, 3))
        assert alpha is not None
        assert not torch.equal(alpha, torch.full_like(alpha, 1 / alpha.shape[1])), "it learnt"
    # What is composed is what lies there: the skills' own numbers are in the run.
    composed, base = load(runs["context"]), load(workshop.folder / "base")
    assert isinstance(base, DiffusionPolicy)
    assert isinstance(composed, ComposedPolicy)
    again = ComposedPolicy(base, workshop.library.load_all(["go", "stay"], base.acting), ALPHA.config())
    for name, tensor in again.network.state_dict().items():
        assert torch.equal(composed.network.state_dict()[name], tensor), name


def test_a_finished_skill_is_not_learnt_twice_and_never_replaced(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go")
    before = (workshop.library.path / "go" / "card.json").read_bytes()
    workshop.make("go", "skill", data="right", name="go")
    assert (workshop.library.path / "go" / "card.json").read_bytes() == before
    with pytest.raises(SkillError, match="has a skill 'go' that another recipe made"):
        workshop.make("other", "skill", data="left", name="go")
    assert not (workshop.folder / "other").exists()
    with pytest.raises(SkillError, match="has an earlier state of skill 'go'"):
        workshop.make("go", "skill", data="right", name="go", train={**TRAIN, "steps": 8})
    assert (workshop.library.path / "go" / "card.json").read_bytes() == before


def test_weights_that_are_given_need_no_learning(workshop: Workshop) -> None:
    workshop.ingredients()
    alpha = {"name": "fixed", "values": [0.25, -1.0]}
    run = workshop.make("given", "composition", skills=["go", "stay"], alpha=alpha)
    workshop.make("given", "composition", skills=["go", "stay"], alpha=alpha)
    found = load(run).weigh(torch.randn(2, 3))
    assert found is not None
    assert found.tolist() == [[0.25, -1.0]] * 2


def test_the_release_s_regulariser_draws_alpha_to_one_skill(workshop: Workshop) -> None:
    workshop.ingredients()
    fields = {
        "skills": ["go", "stay"],
        "lean": {"skill": "stay", "strength": 0.5},
    }
    prepared = recipe_of(workshop.recipe("composition", **fields)).prepare()
    losses = prepared.task.losses(0, 0, True)
    # At first both weights are 1/2, which is 8 of 16.
    expected = 0.5 * ((8 - 8) ** 2 + (8 - 16) ** 2)
    assert float(losses.reported["penalty"].detach()) == pytest.approx(expected)
    torch.testing.assert_close(losses.total, losses.reported["loss"] + losses.reported["penalty"])


def test_weights_of_transitions_count_in_the_loss(workshop: Workshop) -> None:
    workshop.ingredients()
    fields = {"name": "other", "critics": str(workshop.folder / "critics")}
    plain = recipe_of(workshop.recipe("skill", **fields)).prepare()
    advantage = {"name": "advantage", "temperature": 0.0}  # exp(0) = 1
    ones = recipe_of(workshop.recipe("skill", **fields, weights=advantage)).prepare()
    twos = recipe_of(workshop.recipe("skill", **fields, weights={**advantage, "limit": 0.5})).prepare()
    loss = [float(p.task.losses(0, 0, True).total.detach()) for p in (plain, ones, twos)]
    assert loss[1] == pytest.approx(loss[0])
    assert loss[2] == pytest.approx(loss[0] / 2)


def test_rewards_are_brought_to_the_range_of_returns(workshop: Workshop) -> None:
    recipe = workshop.recipe(
        "critics", critics={"reward": {"hidden": [8]}}, rewards="range", timeouts_end=True
    )
    prepared = recipe_of(recipe).prepare()
    batch = prepared.task._data  # type: ignore[attr-defined]
    with np.load(workshop.data["left"][0]["path"]) as arrays:
        rewards, ends = arrays["rewards"], arrays["timeouts"]
    returns = rewards.reshape(-1, 40).sum(1)
    np.testing.assert_allclose(batch.rewards, rewards * 40 / (returns.max() - returns.min()), rtol=1e-4)
    assert torch.equal(batch.terminals, torch.from_numpy(ends).float())
    assert load_critics(workshop.make("critics", "critics", critics={"reward": {"hidden": [8]}})).reward


def test_only_what_was_asked_of_the_data_is_learnt(workshop: Workshop) -> None:
    (source,) = workshop.data["right"]
    with np.load(source["path"]) as arrays:
        costs = arrays["costs"].reshape(-1, 40).sum(1)
    limit = float(np.sort(costs)[2])
    workshop.make("base", "policy")
    few = [{**source, "max_cost": limit, "trajectories": 2, "seed": 5}]
    learn(
        recipe_of({**workshop.recipe("policy"), "data": few}), workshop.folder / "few", workshop.said.append
    )
    assert any(line.startswith("80 transitions in 2 trajectories") for line in workshop.said)
    with pytest.raises(DataError, match=r"has no trajectory within min_return 5"):
        recipe_of({**workshop.recipe("policy"), "data": [{**source, "min_return": 5.0}]}).prepare()


def test_a_run_does_not_go_on_with_other_data_or_another_base(
    workshop: Workshop, write_demonstrations: Write
) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go")
    workshop.library.remove("go")
    write_demonstrations("right", 7)
    with pytest.raises(RunError, match=r"data of .* changed since it was made"):
        workshop.make("go", "skill", data="right", name="go")
    with pytest.raises(RunError, match="was made with name = 'go'; the recipe now says 'went'"):
        workshop.make("go", "skill", data="right", name="went")
    assert set(json.loads((workshop.folder / "go" / "inputs.json").read_text())) == {"data", "base"}


def test_mistakes_are_refused_before_anything_is_written(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go")
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"train": TRAIN}, RecipeError, "lacks kind"),
        ({"kind": "polcy"}, RecipeError, "unknown 'polcy'"),
        (workshop.recipe("policy", data="left") | {"data": []}, RecipeError, "names no data"),
        (workshop.recipe("policy") | {"weights": {"name": "advantage"}}, RecipeError, "there are no critics"),
        (workshop.recipe("policy", policy={**NETWORK, "pick": "min-qc"}), RecipeError, "has no critics"),
        (workshop.recipe("composition", skills=["go"], pick="max-q"), RecipeError, "has no critics"),
        (
            workshop.recipe("skill", name="x", growth={"full": {"multiplier": 0}}),
            SkillError,
            r"full\.multiplier must be finite and not 0",
        ),
        (
            workshop.recipe("composition", skills=["go"], alpha={"name": "top_p", "hidden": [0]}),
            RecipeError,
            r"alpha\.hidden\.0",
        ),
        (workshop.recipe("composition", skills=["fly"]), SkillError, "fly"),
        (workshop.recipe("composition"), RecipeError, "composes skills"),
        (workshop.recipe("composition", level="noise"), RecipeError, "needs policies, skills or both"),
        (
            workshop.recipe("composition", level="actions", skills=["go"], loss="noise"),
            RecipeError,
            "no noise to learn by",
        ),
        (workshop.recipe("composition", skills=["go"], lean={"skill": "stay"}), RecipeError, "not to 'stay'"),
        (
            workshop.recipe("composition", level="noise", policies=[str(workshop.folder / "base")]),
            RecipeError,
            "two of the policies that are composed are called 'base'",
        ),
        (workshop.recipe("skill", name="x", base=str(workshop.folder / "go")), RecipeError, "kind 'growing'"),
        (workshop.recipe("skill", name="x", base="nowhere"), RunError, "no policy at nowhere"),
        (workshop.recipe("skill", name="x", beside=["go"]), RecipeError, "beside_weights 0 weights"),
    ]
    for values, error, message in cases:
        with pytest.raises(error, match=message):
            learn(recipe_of(values), workshop.folder / "new", workshop.said.append)
        assert not (workshop.folder / "new").exists(), message


def test_a_skill_may_grow_beside_others(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go")
    before = (workshop.library.path / "go" / "adapter_model.safetensors").read_bytes()
    workshop.make("on", "skill", name="on", beside=["go"], beside_weights=[0.5], growth={"rank": 2})
    card = workshop.library.card("on")
    assert card is not None
    assert set(card.parents) == {"go"}
    assert card.ranks == (2,)
    assert (workshop.library.path / "go" / "adapter_model.safetensors").read_bytes() == before


def test_a_skill_does_not_go_on_beside_another_of_the_same_name(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go")
    beside = {"name": "on", "beside": ["go"], "beside_weights": [0.5]}
    workshop.make("on", "skill", **beside)
    workshop.make("on", "skill", **beside)
    workshop.library.remove("on")
    workshop.library.remove("go")
    workshop.make("other", "skill", data="left", name="go")
    with pytest.raises(RunError, match=r"skill go of .* changed since it was made"):
        workshop.make("on", "skill", **beside, train={**TRAIN, "steps": 8})


def test_a_composition_draws_as_many_candidates_as_its_base(
    make_policy: Callable[..., DiffusionPolicy], make_skill: Callable[..., Skill]
) -> None:
    base = make_policy()
    base.num_candidates = 4
    config = GrowthConfig()
    policies = (
        ComposedPolicy(base, [make_skill("go")], ALPHA.config()),
        GrowingPolicy(base, config.new(base.acting, "on", 0), config),
    )
    assert [policy.num_candidates for policy in policies] == [4, 4]


def test_full_modules_take_the_same_way(workshop: Workshop) -> None:
    workshop.make("base", "policy")
    workshop.make("go", "skill", data="right", name="go", growth={"full": {}})
    policy = load(workshop.make("PSEC (MLP)", "composition", data="right", skills=["go"]))
    assert isinstance(policy, ComposedPolicy)
    assert not isinstance(policy, NoiseComposition)
