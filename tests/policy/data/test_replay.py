"""Minari sets made here, with Gymnasium's environments: what was recorded is what is done again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import DataError
from expertise.policy.data import Transitions, read
from expertise.policy.envs import Environment

minari = pytest.importorskip("minari", reason="`make setup-policy` installs it")
gymnasium = pytest.importorskip("gymnasium", reason="`make setup-policy` installs it")
pytest.importorskip("mujoco", reason="`make setup-policy` installs it")

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
STEPS = 60
"""Of an episode that does not end before."""


def record(task: str, folder: Path, episodes: int = 2, **environment: Any) -> tuple[str, list[float]]:
    """A data set of random episodes, seeds 0, 1, …, and the return of each."""
    env = gymnasium.make(task, max_episode_steps=STEPS, **environment)
    buffers, returns = [], []
    low, high = env.action_space.low, env.action_space.high
    for seed in range(episodes):
        rows: dict[str, list[Any]] = {key: [] for key in KEYS}
        rows["observations"].append(env.reset(seed=seed)[0])
        dice, over = np.random.default_rng(seed), False
        while not over:
            # Over the whole space: half of the numbers are at a bound.
            action = np.clip(dice.uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low), low, high)
            action = action.astype(np.float32)
            seen, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            for key, value in zip(KEYS, (seen, action, float(reward), terminated, truncated), strict=True):
                rows[key].append(value)
        returns.append(sum(rows["rewards"]))
        wide = {key: np.array(rows[key]) for key in ("observations", "actions")}
        buffers.append(minari.data_collector.EpisodeBuffer(id=seed, **{**rows, **wide}))
    name = f"{task.lower().replace('-', '')}/random-v0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and code that are not named
        minari.create_dataset_from_buffers(name, buffers, env=env)
    env.close()
    return str(folder / name), returns


def replayed(data: Transitions, task: str) -> list[float]:
    """The return of each trajectory's actions in our environment, from the state of seed 0, 1, …"""
    totals = []
    with Environment(task) as environment:
        for seed, rows in enumerate(data.trajectories()):
            seen = environment.reset(seed)
            assert np.allclose(seen, data.observations[rows][0], atol=1e-5)
            totals.append(sum(environment.step(action).reward for action in data.actions[rows]))
    return totals


@pytest.mark.parametrize(
    ("task", "bound"),
    [("Humanoid-v5", 0.4), ("Pusher-v5", 2.0), ("InvertedPendulum-v5", 3.0), ("Hopper-v5", 1.0)],
)
def test_a_replay_returns_what_was_recorded(
    task: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path, returns = record(task, tmp_path)
    data = read(path)
    assert np.allclose(data.returns(), returns, rtol=1e-5)
    assert np.abs(data.actions).max() == 1.0
    episode = next(iter(minari.load_dataset(path.removeprefix(f"{tmp_path}/")).iterate_episodes()))
    assert np.abs(episode.actions).max() == np.float32(bound)
    assert np.allclose(data.actions[: len(episode.actions)] * bound, episode.actions, atol=1e-5)
    assert replayed(data, f"gym/{task}") == pytest.approx(returns, rel=1e-3)
    assert not any("bounds" in note for note in data.notes)


def declare(path: str, space: Any) -> None:
    """Another action space for a data set."""
    from minari.serialization import serialize_space

    file = Path(path) / "data" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "action_space": serialize_space(space)}))


def test_spaces_of_every_kind_of_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path, _ = record("Reacher-v5", tmp_path, episodes=1)
    box = gymnasium.spaces.Box
    plain = read(path).actions
    assert np.allclose(read(path, action_low=-2.0, action_high=2.0).actions, plain / 2)
    declare(path, box(np.array([-1, -2], np.float32), np.array([1, 4], np.float32)))
    assert np.allclose(read(path).actions, (plain - [0, 1]) / [1, 3], atol=1e-6)
    for low, high in ((-np.inf, np.inf), (-np.finfo(np.float32).max, np.finfo(np.float32).max)):
        declare(path, box(low, high, (2,), np.float32))
        data = read(path)
        assert np.array_equal(data.actions, plain)
        assert any("declares no bounds" in note for note in data.notes)
    declare(path, box(-0.5, 0.5, (2,), np.float32))
    with pytest.raises(DataError, match=r"reach .* they must lie in \[-0.5, 0.5\] \(declared there\)"):
        read(path)
    assert np.array_equal(read(path, actions="clip").actions, np.clip(2 * plain, -1, 1))
    declare(path, gymnasium.spaces.Discrete(2))
    with pytest.raises(DataError, match=r"Discrete\(2\)"):
        read(path)


def test_one_episode_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    path, returns = record("Reacher-v5", tmp_path, episodes=3)
    main = Path(path) / "data" / "main_data.hdf5"
    with h5py.File(main, "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(DataError, match="episode 1"):
        read(path)
    data = read(path, on_bad="skip")
    assert np.allclose(data.returns(), [returns[0], returns[2]], rtol=1e-5)
    with h5py.File(main, "a") as file:
        file["episode_2/observations"][3] = np.nan
    with pytest.raises(DataError, match="2 of 3 episodes"):
        read(path, on_bad="skip")
    with pytest.raises(DataError, match="episodes of a Minari data set"):
        read(main)
    main.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(DataError, match="Git LFS pointer"):
        read(path)
