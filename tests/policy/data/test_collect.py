"""Collecting: from a recipe to files, the same however often it is stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expertise.errors import ExpertiseError, RunError
from expertise.policy.data import read
from expertise.policy.data.collect import CollectConfig, DataSetConfig, collect
from expertise.policy.data.rollouts import RolloutConfig, roll_out
from expertise.policy.data.sac import SacConfig, TeacherConfig, _Training, snapshot, train_teacher
from expertise.policy.data.teachers import Actor, Chance, Script
from expertise.policy.data.write import facts_of, write_dsrl, write_minari
from expertise.policy.envs import make
from expertise.runs import checkpoint
from expertise.runs import recipe as recipes

h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
sb3 = pytest.importorskip("stable_baselines3", reason="`make setup-policy` installs it")

TEACHER = TeacherConfig(
    name="arm",
    environment="gym/Reacher-v5",  # 50 steps per episode
    steps=240,
    checkpoints=[100],
    evaluate_every=100,
    episodes=1,
    save_every=60,
    sac=SacConfig(hidden=(16, 16), batch_size=16, random_steps=40),
)
LATER = dataclasses.replace(TEACHER, name="later", init="arm", steps=120, checkpoints=[], seed=1)
ARM = DataSetConfig(
    name="arm",
    seed=3,
    rollouts=[
        RolloutConfig(teacher="arm", episodes=3, noise=0.2, partner="arm", partner_checkpoint=100),
        RolloutConfig(teacher="random", episodes=2, environment="gym/Reacher-v5"),
    ],
)
CONFIG = CollectConfig(
    teachers=[TEACHER, LATER],
    datasets=[ARM, DataSetConfig(name="later", rollouts=[RolloutConfig(teacher="later", episodes=1)])],
)


def silent(_: str) -> None:
    pass


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timing.jsonl", ".lock")
    }


def message(call: Callable[[], object]) -> str:
    with pytest.raises(ExpertiseError) as caught:
        call()
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collected") / "out"
    collect(CONFIG, out, silent)
    return out


# --- what comes out -------------------------------------------------------------------------------------


def test_files_hold_the_rollouts_in_order(collected: Path) -> None:
    data = read(collected / "arm.hdf5")
    assert [rows.stop - rows.start for rows in data.trajectories()] == [50] * 5
    assert data.timeouts.sum() == 5
    assert not data.terminals.any()
    assert data.costs is None  # the task has none
    facts = facts_of(collected / "arm.hdf5")
    assert [r["teacher"] for r in facts["rollouts"]] == ["arm", "random"]
    first = facts["rollouts"][0]
    assert first["mean_return"] == pytest.approx(data.returns()[:3].mean())
    assert (first["action_repeat"], first["transitions"]) == (1, 150)
    assert (first["teacher_facts"]["step"], first["partner_facts"]["step"]) == (240, 100)
    assert -100 < first["teacher_facts"]["return"] < 0
    assert facts["seed"] == 3
    assert {"expertise", "torch", "mujoco", "stable-baselines3"} <= set(facts["versions"])


def test_any_reader_of_hdf5_gets_flat_rows(collected: Path) -> None:
    """What other tools do with such a file, without this library."""
    with h5py.File(collected / "arm.hdf5") as file:
        seen, following = file["observations"][:], file["next_observations"][:]
        assert seen.dtype == following.dtype == np.float32
        assert file["rewards"].shape == (250,)
        assert file["terminals"].dtype == bool
        ends = np.flatnonzero(file["timeouts"][:])
    inside = np.setdiff1d(np.arange(250), ends)
    assert np.array_equal(following[inside], seen[inside + 1])
    assert not np.array_equal(following[ends[:-1]], seen[ends[:-1] + 1])
    assert np.array_equal(read(collected / "arm.hdf5").next_observations, following)


def test_sums_are_those_of_the_files(collected: Path) -> None:
    lines = (collected / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["arm.hdf5", "later.hdf5"]
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((collected / name).read_bytes()).hexdigest() == digest


def test_the_recipe_is_kept_and_reads_back(collected: Path) -> None:
    text = (collected / "recipe.toml").read_text()
    assert recipes.build(recipes.parse(text, "it"), CollectConfig) == CONFIG


class Killed(Exception):  # noqa: N818 - a kill is no error
    """Stands for a kill: nothing of ours catches it."""


@pytest.mark.parametrize("where", [2, 3, 5, 7])
def test_a_killed_collection_goes_on_to_the_same_bytes(where: int, collected: Path, tmp_path: Path) -> None:
    said = 0

    def kill(_: str) -> None:
        nonlocal said
        said += 1
        if said == where:
            raise Killed

    with pytest.raises(Killed):
        collect(CONFIG, tmp_path / "out", kill)
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
    collect(CONFIG, tmp_path / "out", silent)
    assert digests(tmp_path / "out") == digests(collected)


def test_a_finished_collection_does_nothing_again(collected: Path) -> None:
    before, said = digests(collected), list[str]()
    collect(CONFIG, collected, said.append)
    assert digests(collected) == before
    assert not any("steps" in line or "episodes of" in line for line in said)


def test_a_changed_recipe_does_again_only_what_it_concerns(collected: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(collected, tmp_path / "out")
    before = digests(tmp_path / "out")
    changed = dataclasses.replace(
        ARM, rollouts=[ARM.rollouts[0], dataclasses.replace(ARM.rollouts[1], episodes=4)]
    )
    said: list[str] = []
    config = dataclasses.replace(CONFIG, datasets=[changed, CONFIG.datasets[1]])
    collect(config, tmp_path / "out", said.append)
    assert [line for line in said if "episodes of" in line] == [
        "arm/1: 4 episodes of random in gym/Reacher-v5"
    ]
    after = digests(tmp_path / "out")
    assert after["later.hdf5"] == before["later.hdf5"]
    assert len(read(tmp_path / "out" / "arm.hdf5").trajectories()) == 7


def test_a_damaged_part_is_made_again(collected: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(collected, tmp_path / "out")
    part = next((tmp_path / "out" / "parts").glob("arm-1-*"))
    part.write_bytes(part.read_bytes()[:100])
    collect(CONFIG, tmp_path / "out", silent)
    assert digests(tmp_path / "out") == digests(collected)


def test_a_damaged_teacher_is_named(collected: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(collected, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "parts")
    weights = next((tmp_path / "out").glob("teachers/arm-*/checkpoints/step-240/sac.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "sac.safetensors is not what was written" in message(
        lambda: collect(CONFIG, tmp_path / "out", silent)
    )


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="is not a run and is not empty"):
        collect(CONFIG, tmp_path, silent)


def test_a_minari_folder_may_be_named_from_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collected: Path
) -> None:
    pytest.importorskip("minari", reason="`make setup-policy` installs it")
    data = read(collected / "arm.hdf5")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    path = write_minari(Path("out"), "arm", data, {})
    assert path == Path("out/arm-v0")
    assert np.array_equal(read(path).actions, data.actions)


def test_minari_reads_what_is_written_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari", reason="`make setup-policy` installs it")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    rollout = RolloutConfig(teacher="random", episodes=2, environment="velocity/Swimmer-v5@repeat=100")
    datasets = [
        DataSetConfig(name=name, layout=layout, rollouts=[rollout], seed=1)
        for name, layout in (("swim", "minari"), ("flat", "dsrl"))
    ]
    # Episodes follow from the data set's name, too: give both the same.
    path = collect(CollectConfig(datasets=[datasets[0]]), tmp_path / "out", silent)[0]
    flat = collect(
        CollectConfig(datasets=[dataclasses.replace(datasets[1], name="swim")]), tmp_path / "flat", silent
    )
    expected, found = read(flat[0]), read(path)
    assert expected.costs is not None
    assert expected.costs.sum() > 0
    for key, array in expected.arrays().items():
        assert np.array_equal(found.arrays()[key], array), key
    by_itself = minari.load_dataset("swim-v0")
    assert (by_itself.total_episodes, by_itself.total_steps) == (2, len(expected))
    assert "expertise" in json.loads(by_itself.storage.metadata["description"])
    assert len((tmp_path / "out" / "SHA256SUMS").read_text().splitlines()) == 2


# --- teachers -------------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.open_checkpoint(folder).tensors("sac")


def test_an_actor_acts_as_stable_baselines_says(collected: Path) -> None:
    folder = snapshot(next(collected.glob("teachers/arm-*")), 240)
    observation = np.random.default_rng(0).normal(size=10).astype(np.float32)
    with make(TEACHER.environment) as environment, make(TEACHER.environment) as judge:
        model = _Training(TEACHER, collected / "nowhere", None, environment, judge, silent)._model
    learnt = weights(folder)
    assert learnt.pop("log_ent_coef") < 0  # the temperature falls from 1, and is kept
    model.policy.load_state_dict(learnt)
    expected, _ = model.predict(observation, deterministic=True)
    mean = Actor.read(folder, sample=False).act(observation, np.random.default_rng(0))
    assert np.allclose(mean, expected, atol=1e-6)
    # Drawn actions spread about the mean as its own distribution does.
    drawn, dice = Actor.read(folder), np.random.default_rng(0)
    ours = np.array([drawn.act(observation, dice) for _ in range(3000)])
    torch.manual_seed(0)
    theirs = model.actor(torch.from_numpy(np.tile(observation, (3000, 1)))).detach().numpy()
    assert abs(ours.mean() - theirs.mean()) < 0.03
    assert abs(ours.std() - theirs.std()) < 0.03


def test_a_teacher_goes_on_from_another(collected: Path, tmp_path: Path) -> None:
    before = snapshot(next(collected.glob("teachers/arm-*")), 240)
    short = dataclasses.replace(LATER, steps=39)  # fewer than are collected before the first update
    train_teacher(short, tmp_path / "short", before, silent)
    start, end = weights(before), weights(snapshot(tmp_path / "short", 39))
    assert all(torch.equal(start[name], end[name]) for name in start)
    longer = weights(snapshot(next(collected.glob("teachers/later-*")), 120))
    assert not torch.equal(start["actor.mu.weight"], longer["actor.mu.weight"])
    wide = dataclasses.replace(LATER, sac=SacConfig(hidden=(8, 8)))
    assert "other networks | both need the same sac.hidden" in message(
        lambda: train_teacher(wide, tmp_path / "wide", before, silent)
    )


def test_costs_are_taken_off_with_their_weight(tmp_path: Path) -> None:
    config = TeacherConfig(
        name="slow",
        environment="velocity/Swimmer-v5@repeat=50",
        steps=15,
        cost_weight=2.0,
        sac=SacConfig(hidden=(8,), random_steps=100),
    )
    remembered = []
    for weight in (2.0, 0.0):
        with make(config.environment) as environment, make(config.environment) as judge:
            training = _Training(
                dataclasses.replace(config, cost_weight=weight),
                tmp_path / str(weight),
                None,
                environment,
                judge,
                silent,
            )
            training.run()
        remembered.append(training._model.replay_buffer.rewards[:15].ravel())
    costs = (remembered[1] - remembered[0]) / 2
    assert np.allclose(costs, costs.round(), atol=1e-5)  # numbers of steps over the limit
    assert costs.max() > 1


# --- episodes -------------------------------------------------------------------------------------------


def episodes(config: RolloutConfig, teacher: Any, name: str, **more: Any) -> list[Any]:
    with make(name) as environment:
        return list(roll_out(environment, teacher, config, more.pop("seed", 0), "test", **more))


def test_noise_is_recorded_or_not() -> None:
    class Still(Chance):
        def act(self, observation: np.ndarray, dice: np.random.Generator) -> Any:
            return np.full(6, 0.25)

    config = RolloutConfig(teacher="random", episodes=1, environment="dmc/walker-walk", noise=0.1)
    name = "dmc/walker-walk@repeat=50"
    executed = episodes(config, Still(6), name)[0]
    intended = episodes(dataclasses.replace(config, record="intended"), Still(6), name)[0]
    assert np.array_equal(executed.observations, intended.observations)
    assert (intended.actions == 0.25).all()
    assert executed.actions.mean() == pytest.approx(0.25, abs=0.05)
    assert executed.actions.std() == pytest.approx(0.1, abs=0.03)
    with make(name) as environment:  # and what is recorded is what was done
        start, _ = next(iter_seeds())
        environment.reset(start)
        seen = [environment.step(action).observation for action in executed.actions]
    assert np.array_equal(np.array(seen), executed.next_observations)


def iter_seeds() -> Any:
    from expertise.policy.data.rollouts import episode_seeds

    return episode_seeds(0, "test")


def test_seed_and_purpose_decide_episodes() -> None:
    config = RolloutConfig(teacher="random", episodes=2, environment="dmc/walker-walk")
    name = "dmc/walker-walk@repeat=100"
    first, again, other = (episodes(config, Chance(6), name, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first[1].observations, again[1].observations)
    assert not np.array_equal(first[0].observations, first[1].observations)
    assert not np.array_equal(first[0].observations, other[0].observations)


def test_a_blend_lies_between_two_with_one_share_per_episode() -> None:
    class Constant(Chance):
        def __init__(self, value: float) -> None:
            super().__init__(6)
            self.value = value

        def act(self, observation: np.ndarray, dice: np.random.Generator) -> Any:
            return np.full(6, self.value)

    config = RolloutConfig(teacher="random", episodes=8, environment="dmc/walker-walk", partner="random")
    blended = episodes(config, Constant(1.0), "dmc/walker-walk@repeat=500", partner=Constant(-1.0))
    shares = [(e.actions.min() + 1) / 2 for e in blended]
    assert all(e.actions.min() == e.actions.max() for e in blended)
    assert 0 <= min(shares) < 0.4 < 0.6 < max(shares) <= 1


def test_scripts_are_kept_until_the_task_is_done() -> None:
    pytest.importorskip("metaworld", reason="`make setup-policy` installs it")
    name = "metaworld/button-press-topdown-v3"
    config = RolloutConfig(teacher="script", episodes=3, environment=name, until_success=True)
    for episode in episodes(config, Script(name), name):
        assert len(episode) < 200
        assert episode.timeouts[-1]
    assert message(lambda: Script("dmc/walker-walk")).startswith("dmc/walker-walk has no scripted teacher")


def test_a_teacher_that_does_not_succeed_is_refused() -> None:
    name = "gym/Reacher-v5"  # it has no success at all
    config = RolloutConfig(teacher="random", episodes=3, environment=name, until_success=True)
    said = message(lambda: episodes(config, Chance(2), name))
    assert said.startswith("random does the task of gym/Reacher-v5 in 0 of 20 episodes | set until_success")


# --- mistakes in a recipe -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"datasets": []}, "the recipe names no data sets"),
        ({"datasets": [ARM, ARM]}, "two data sets have the name 'arm'"),
        ({"teachers": [TEACHER, TEACHER]}, "two teachers have the name 'arm'"),
        ({"teachers": [dataclasses.replace(TEACHER, name="script")]}, "two teachers have the name 'script'"),
        ({"teachers": [dataclasses.replace(TEACHER, name="../x")]}, "'../x' is no name for a teacher"),
        ({"teachers": [LATER, TEACHER]}, "goes on from 'arm', which is not listed before it"),
        ({"teachers": [TEACHER]}, "no teacher 'later'"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], expected: str) -> None:
    assert expected in message(lambda: dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"teacher": "amr"}, "no teacher 'amr' | did you mean 'arm'?"),
        ({"teacher": "arm", "checkpoint": 90}, "has no checkpoint 90 | it keeps 100, 240"),
        ({"teacher": "arm", "partner": "nobody"}, "no teacher 'nobody'"),
        ({"teacher": "arm", "partner_checkpoint": 100}, "has a partner_checkpoint and no partner"),
        ({"teacher": "script"}, "a rollout of the teacher 'script' must name its environment"),
        ({"teacher": "arm", "environment": "walker"}, "'walker' is no name of an environment"),
    ],
)
def test_rollouts_name_what_there_is(fields: dict[str, Any], expected: str) -> None:
    def build() -> CollectConfig:
        data = DataSetConfig(name="x", rollouts=[RolloutConfig(episodes=1, **fields)])
        return dataclasses.replace(CONFIG, datasets=[data])

    assert expected in message(build)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("dmc/walkr-walk", "dmc has no task 'walkr-walk' | did you mean 'walker-walk'?"),
        ("dcm/walker-walk", "unknown family of environments 'dcm' | did you mean 'dmc'?"),
    ],
)
def test_unknown_environments_are_refused_before_any_work(
    environment: str, expected: str, tmp_path: Path
) -> None:
    rollouts = [
        RolloutConfig(teacher="random", episodes=1, environment=name)
        for name in ("gym/Reacher-v5", environment)
    ]
    config = CollectConfig(datasets=[DataSetConfig(name="x", rollouts=rollouts)])
    said: list[str] = []
    assert message(lambda: collect(config, tmp_path / "out", said.append)) == expected
    assert not said
    assert not (tmp_path / "out").exists()
    config = CollectConfig(
        teachers=[dataclasses.replace(TEACHER, environment=environment)], datasets=[config.datasets[0]]
    )
    assert message(lambda: collect(config, tmp_path / "out", said.append)) == expected
    rollouts[1] = RolloutConfig(teacher="script", episodes=1, environment="gym/Reacher-v5")
    config = CollectConfig(datasets=[DataSetConfig(name="x", rollouts=rollouts)])
    assert "gym/Reacher-v5 has no scripted teacher" in message(
        lambda: collect(config, tmp_path / "out", said.append)
    )
    assert not said


def test_a_teacher_is_kept_at_steps_that_it_has() -> None:
    for checkpoints in ([240], [100, 240]):
        dataclasses.replace(TEACHER, checkpoints=checkpoints)
    assert message(lambda: dataclasses.replace(TEACHER, checkpoints=[100, 241])) == (
        "teacher 'arm' is to be kept at step 241 of 240"
    )
    assert "'walker' is no name of an environment" in message(
        lambda: dataclasses.replace(TEACHER, environment="walker")
    )


def test_a_layout_must_be_known_and_rollouts_given() -> None:
    assert "did you mean 'dsrl'?" in message(lambda: dataclasses.replace(ARM, layout="dslr"))
    assert "has no rollouts" in message(lambda: dataclasses.replace(ARM, rollouts=[]))


def test_a_teacher_acts_only_where_it_can(collected: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(collected, tmp_path / "out")
    rollout = RolloutConfig(teacher="arm", episodes=1, environment="dmc/walker-walk")
    config = dataclasses.replace(CONFIG, datasets=[DataSetConfig(name="x", rollouts=[rollout])])
    assert "teacher 'arm' cannot act in dmc/walker-walk" in message(
        lambda: collect(config, tmp_path / "out", silent)
    )


def test_rows_that_do_not_follow_one_another_are_written_as_they_are(tmp_path: Path, collected: Path) -> None:
    data = read(collected / "arm.hdf5").select(np.array([3, 1, 60, 59]))
    path = write_dsrl(tmp_path, "picked", data, {})
    with h5py.File(path) as file:
        assert "states" not in file
    for key, array in data.arrays().items():
        assert np.array_equal(read(path).arrays()[key], array), key
