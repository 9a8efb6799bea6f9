"""Actions in their own units, broken episodes, observations in parts: the same in every layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertise.errors import DataError, RecipeError
from expertise.policy.data import DataConfig, Transitions, from_arrays, read
from expertise.runs import recipe as recipes

LENGTH, EPISODES = 4, 10
KEYS = ("action_low", "action_high", 'actions = "clip"')


def rows(actions: Any = None, *, costs: bool = False, following: bool = True) -> dict[str, Any]:
    """Ten episodes of four rows, of which each is cut."""
    dice = np.random.default_rng(0)
    number = LENGTH * EPISODES
    seen = dice.normal(size=(EPISODES, LENGTH + 1, 3)).astype(np.float32)
    arrays = {
        "observations": seen[:, :-1].reshape(number, 3),
        "actions": dice.uniform(-0.9, 0.9, (number, 2)) if actions is None else actions,
        "rewards": np.repeat(np.arange(EPISODES), LENGTH).astype(np.float32),
        "terminals": np.zeros(number, bool),
        "timeouts": np.arange(number) % LENGTH == LENGTH - 1,
    }
    if following:
        arrays["next_observations"] = seen[:, 1:].reshape(number, 3)
    if costs:
        arrays["costs"] = np.ones(number, np.float32)
    return arrays


def in_range(low: Any, high: Any, width: int = 2) -> np.ndarray:
    dice = np.random.default_rng(1)
    return dice.uniform(low, high, (LENGTH * EPISODES, width)).astype(np.float32)


def write(layout: str, folder: Path, arrays: dict[str, Any], **declared: Any) -> Path:
    """The rows as a file of a layout; what is `declared` are the bounds of the actions."""
    if layout == "npz":
        np.savez(folder / "data.npz", **arrays, **declared)
        return folder / "data.npz"
    h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    path = folder / "data.hdf5"
    with h5py.File(path, "w") as file:
        if layout == "robomimic":
            for episode in range(EPISODES):
                part = slice(episode * LENGTH, (episode + 1) * LENGTH)
                group = file.create_group(f"data/demo_{episode}")
                for key in ("actions", "rewards"):
                    group[key] = arrays[key][part]
                group["dones"] = np.arange(LENGTH) == LENGTH - 1
                group["obs/place"] = arrays["observations"][part, 1:]
                group["obs/angle"] = arrays["observations"][part, :1]
                if "next_observations" in arrays:
                    group["next_obs/place"] = arrays["next_observations"][part, 1:]
                    group["next_obs/angle"] = arrays["next_observations"][part, :1]
        else:
            for key, value in arrays.items():
                file[key] = value
            file.attrs.update(declared)
    return path


def said(call: Callable[[], object]) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        call()
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message
    return " | ".join([caught.value.message, *caught.value.hints])


LAYOUTS = ["npz", "dsrl", "d4rl", "robomimic"]


# --- units of actions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_nothing_is_declared_it_is_said_what_is_assumed(layout: str, tmp_path: Path) -> None:
    arrays = rows(in_range(-0.4, 0.4), costs=layout == "dsrl")
    path = write(layout, tmp_path, arrays)
    data = read(path)
    assert np.array_equal(data.actions, arrays["actions"])
    notes = [note for note in data.notes if "declares no bounds" in note]
    assert len(notes) == 1
    assert notes[0].startswith("note:")
    assert "[-1, 1] is assumed" in notes[0]
    assert all(key in notes[0] for key in KEYS[:2])
    given_bounds = read(path, action_low=-0.4, action_high=[0.4, 0.4])
    assert np.allclose(given_bounds.actions, arrays["actions"] / 0.4, atol=1e-6)
    assert not any("bounds" in note for note in given_bounds.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_actions_outside_are_refused_with_the_keys_to_set(layout: str, tmp_path: Path) -> None:
    actions = in_range(-1.3, 1.3)
    actions[5, 1] = 1.35
    arrays = rows(actions, costs=layout == "dsrl")
    path = write(layout, tmp_path, arrays)
    heard = said(lambda: read(path))
    assert "reach" in heard
    assert all(key in heard for key in KEYS)
    cut = read(path, actions="clip")
    assert np.array_equal(cut.actions, np.clip(arrays["actions"], -1, 1))
    outside = int((np.abs(arrays["actions"]) > 1).any(1).sum())
    assert any(f"{outside} of 40 actions" in note for note in cut.notes)
    scaled = read(path, action_low=-2, action_high=2)
    assert np.allclose(scaled.actions, arrays["actions"] / 2, atol=1e-6)
    assert all(key in said(lambda: read(path, action_low=-1.2, action_high=1.2)) for key in KEYS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_actions_within_0_and_1_get_a_warning(layout: str, tmp_path: Path) -> None:
    path = write(layout, tmp_path, rows(in_range(0.05, 0.95), costs=layout == "dsrl"))
    warnings = [note for note in read(path).notes if note.startswith("warning:")]
    assert len(warnings) == 1
    assert "[0, 1]" in warnings[0]
    assert all(key in warnings[0] for key in KEYS[:2])
    data = read(path, action_low=0, action_high=1)
    assert not any("bounds" in note for note in data.notes)
    assert data.actions.min() < -0.5


def test_a_component_that_goes_from_0_to_1_gets_a_warning() -> None:
    actions = in_range(-1, 1)
    actions[:, 1] = np.arange(len(actions)) % 2
    (note,) = from_arrays(rows(actions)).notes
    assert note.startswith("warning: component 1")
    data = from_arrays(rows(actions), action_low=[-1, 0], action_high=1)
    assert set(data.actions[:, 1].tolist()) == {-1.0, 1.0}
    assert not data.notes


@pytest.mark.parametrize("layout", ["npz", "dsrl", "d4rl"])
def test_bounds_that_a_file_declares_are_used(layout: str, tmp_path: Path) -> None:
    low, high = [-0.4, 0.0], [0.4, 2.0]
    arrays = rows(in_range(low, high), costs=layout == "dsrl")
    data = read(write(layout, tmp_path, arrays, action_low=low, action_high=high))
    assert np.allclose(data.actions, (arrays["actions"] - [0, 1]) / [0.4, 1], atol=1e-6)
    assert not data.notes
    other = read(tmp_path / f"data.{'npz' if layout == 'npz' else 'hdf5'}", action_low=-4, action_high=4)
    assert np.allclose(other.actions, arrays["actions"] / 4, atol=1e-6)
    arrays["actions"][7, 0] = 0.6
    path = write(layout, tmp_path, arrays, action_low=low, action_high=high)
    assert "reach 0.6 in row 7" in said(lambda: read(path))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 100)), min_size=1, max_size=3),
    st.integers(0, 9),
)
def test_what_an_environment_multiplies_by_gives_back_what_was_recorded(
    spans: list[tuple[float, float]], seed: int
) -> None:
    low = np.array([start for start, _ in spans], np.float32)
    high = low + np.array([size for _, size in spans], np.float32)
    actions = np.random.default_rng(seed).uniform(low, high, (LENGTH * EPISODES, len(spans)))
    actions[0], actions[1] = low, high
    data = from_arrays(rows(actions.astype(np.float32)), action_low=low.tolist(), action_high=high.tolist())
    assert np.abs(data.actions).max() == 1.0
    wide_low, wide_high = low.astype(np.float64), high.astype(np.float64)
    done = (wide_high + wide_low) / 2 + (wide_high - wide_low) / 2 * data.actions  # as `Environment.step`
    assert np.allclose(done, actions, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"action_low": -1.0}, "go together"),
        ({"action_low": 1.0, "action_high": 1.0}, "must be below"),
        ({"action_low": [-1.0, 2.0], "action_high": 1.0}, "must be below"),
        ({"action_low": [-1.0], "action_high": [1.0, 2.0, 3.0]}, "width 3"),
        ({"action_low": [-1.0, -1.0, -1.0], "action_high": [1.0, 1.0]}, "3 numbers"),
        ({"action_low": [], "action_high": []}, "finite numbers"),
        ({"action_low": -np.inf, "action_high": 1.0}, "finite numbers"),
        ({"observation_keys": ["place"]}, "without parts"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys: dict[str, Any], expected: str) -> None:
    assert expected in said(lambda: from_arrays(rows(), **keys))


@pytest.mark.parametrize(("key", "known"), [("actions", "'clip'"), ("on_bad", "'skip'")])
def test_words_that_a_key_does_not_know_are_refused(key: str, known: str) -> None:
    heard = said(lambda: recipes.build({"path": "x", key: "scale"}, DataConfig))
    assert key in heard
    assert known in heard
    bounds = recipes.build({"path": "x", "action_low": 0, "action_high": [1, 2.5]}, DataConfig)
    assert recipes.build(recipes.parse(recipes.to_toml(bounds), "here"), DataConfig) == bounds


# --- broken episodes ------------------------------------------------------------------------------------


def broken(arrays: dict[str, Any], *episodes: int) -> dict[str, Any]:
    for key, episode in zip(("observations", "rewards", "actions") * 4, episodes, strict=False):
        arrays[key] = arrays[key].copy()
        arrays[key][episode * LENGTH + 1] = np.nan
    return arrays


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_broken_episode_stops_or_is_left_out_and_counted(layout: str, tmp_path: Path) -> None:
    arrays = broken(rows(costs=layout == "dsrl"), 3)
    path = write(layout, tmp_path, arrays)
    assert "nan" in said(lambda: read(path))
    data = read(path, on_bad="skip")
    assert data.returns().tolist() == [4.0 * n for n in range(EPISODES) if n != 3]
    (note,) = [note for note in data.notes if "are broken" in note]
    assert "1 of 10 episodes" in note
    assert "nan" in note
    path = write(layout, tmp_path, broken(arrays, 3, 5))
    heard = said(lambda: read(path, on_bad="skip"))
    assert "2 of 10 episodes" in heard
    assert "nan" in heard


def test_without_next_observations_a_skipped_episode_does_not_join_its_neighbours() -> None:
    data = from_arrays(broken(rows(following=False), 3), on_bad="skip")
    assert [r.stop - r.start for r in data.trajectories()] == [LENGTH - 1] * (EPISODES - 1)
    assert data.returns().tolist() == [3.0 * n for n in range(EPISODES) if n != 3]


def test_columns_of_another_length_stop_whatever_is_skipped() -> None:
    arrays = rows()
    arrays["rewards"] = arrays["rewards"][:-1]
    assert "'rewards' has 39 rows" in said(lambda: from_arrays(arrays, on_bad="skip"))


def test_demonstrations_that_cannot_be_read_are_broken_episodes(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    path = write("robomimic", tmp_path, rows())
    with h5py.File(path, "a") as file:
        del file["data/demo_2/rewards"]
    assert "demo_2 has no 'rewards'" in said(lambda: read(path))
    assert len(read(path, on_bad="skip").trajectories()) == EPISODES - 1
    path = write("robomimic", tmp_path, rows())
    with h5py.File(path, "a") as file:  # the first one is the odd one
        del file["data/demo_0/obs/place"], file["data/demo_0/next_obs/place"]
    assert "demo_0" in said(lambda: read(path))
    assert len(read(path, on_bad="skip").trajectories()) == EPISODES - 1


# --- observations in parts ------------------------------------------------------------------------------


def parts(array: np.ndarray) -> dict[str, Any]:
    return {"place": array[:, 1:], "angle": array[:, :1]}


def test_parts_are_put_end_to_end_by_name(tmp_path: Path) -> None:
    arrays = rows()
    expected = from_arrays(arrays)
    nested = {**arrays, **{key: parts(arrays[key]) for key in ("observations", "next_observations")}}
    plain = {key: value for key, value in arrays.items() if "observations" not in key}
    flat = {**plain, **{f"{k}/{n}": v for k in nested if k not in plain for n, v in nested[k].items()}}
    found: list[Transitions] = [from_arrays(nested), read(write("npz", tmp_path, flat))]
    found += [read(write(layout, tmp_path, flat if layout == "d4rl" else arrays)) for layout in LAYOUTS[2:]]
    for data in found:
        assert np.array_equal(data.observations, expected.observations)
        assert np.array_equal(data.next_observations, expected.next_observations)
        assert any("angle (1), place (2)" in note for note in data.notes)
    turned = from_arrays(nested, observation_keys=["place", "angle"])
    assert np.array_equal(turned.observations, expected.observations[:, [1, 2, 0]])
    assert from_arrays(nested, observation_keys=["place"]).observations.shape[1] == 2
    assert "no part 'plce' | did you mean 'place'?" in said(
        lambda: from_arrays(nested, observation_keys=["plce"])
    )
    nested["next_observations"] = {"place": arrays["next_observations"]}
    assert "different parts" in said(lambda: from_arrays(nested))


def test_robomimic_marks_of_success_amid_a_demonstration_end_nothing(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    path = write("robomimic", tmp_path, rows(following=False))
    with h5py.File(path, "a") as file:
        file["data/demo_1/dones"][:] = [0, 1, 1, 1]
        file["data/demo_2/dones"][:] = 0
    data = read(path)
    # Without next observations the last row stays where the demonstration ended for good.
    assert [r.stop - r.start for r in data.trajectories()] == [4, 4, 3, *[4] * 7]
    assert data.terminals.sum() == EPISODES - 1


# --- said what to set -----------------------------------------------------------------------------------


def test_costs_without_next_observations_are_read_and_said(tmp_path: Path) -> None:
    path = write("d4rl", tmp_path, rows(costs=True, following=False))
    data = read(path)
    assert data.costs is not None
    assert any("no next observations" in note and "10 last rows" in note for note in data.notes)
    heard = said(lambda: read(path, "dsrl"))
    assert "--layout d4rl" in heard
    assert "max_cost" in said(DataConfig(path=str(write("npz", tmp_path, rows())), max_cost=1.0).read)


@pytest.mark.parametrize("name", ["data.hdf5", "data.npz"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, tmp_path: Path) -> None:
    pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    heard = said(lambda: read(path))
    assert "Git LFS pointer" in heard
    assert "git lfs pull" in heard


@pytest.mark.parametrize("layout", ["npz", "d4rl"])
def test_returns_and_costs_count_the_last_row_that_has_no_next_one(layout: str, tmp_path: Path) -> None:
    arrays = rows(costs=True, following=False)
    last = np.arange(LENGTH * EPISODES) == 3 * LENGTH - 1
    arrays |= {"rewards": last.astype(np.float32), "costs": last.astype(np.float32)}
    path = write(layout, tmp_path, arrays)
    # The third episode earns and costs in its last row alone, which is left out afterwards.
    kept = read(path, min_return=1.0)
    assert np.array_equal(kept.observations, arrays["observations"][2 * LENGTH : 3 * LENGTH - 1])
    assert np.array_equal(kept.next_observations, arrays["observations"][2 * LENGTH + 1 : 3 * LENGTH])
    cheap = read(path, max_cost=0.0)
    assert len(cheap.trajectories()) == EPISODES - 1
    assert not (cheap.observations[:, None] == kept.observations).all(2).any()


def test_arrays_are_selected_as_files_are() -> None:
    arrays = rows(costs=True)
    data = from_arrays(arrays, min_return=20.0, max_cost=4.0, trajectories=2, seed=3)
    assert len(data.trajectories()) == 2
    assert (data.returns() >= 20).all()
    with pytest.raises(DataError, match=r"no trajectory within min_return 1000$"):
        from_arrays(arrays, min_return=1000.0)


@pytest.mark.parametrize(
    ("low", "high"),
    [([1.0, 1.0], [-1.0, -1.0]), ([-2.0, -np.inf], [2.0, np.inf]), ([-2.0, np.nan], [2.0, 2.0])],
)
@pytest.mark.parametrize("layout", ["npz", "d4rl"])
def test_declared_bounds_that_cannot_be_used_are_refused(
    layout: str, low: Any, high: Any, tmp_path: Path
) -> None:
    path = write(layout, tmp_path, rows(), action_low=np.array(low), action_high=np.array(high))
    with pytest.raises(DataError, match="cannot be used") as caught:
        read(path)
    assert "action_low and action_high" in caught.value.hints[0]
    assert read(path, action_low=-2.0, action_high=2.0).actions.max() < 0.5


def test_of_a_broken_episode_it_is_said_what_leaves_it_out(tmp_path: Path) -> None:
    heard = said(lambda: from_arrays(broken(rows(), 3)))
    assert 'on_bad = "skip"' in heard
    # Where something else is to be set, that is said.
    assert "on_bad" not in said(lambda: from_arrays(rows(in_range(-2, 2))))
