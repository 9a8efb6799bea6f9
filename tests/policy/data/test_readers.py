"""Files as the original tools lay them out, written by those tools or by h5py alone, read to equal arrays."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expertise.errors import DataError, MissingExtra, RecipeError
from expertise.policy.data import DataConfig, Transitions, read
from expertise.policy.data.arrays import from_arrays
from expertise.policy.data.write import facts_of

h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
needs_minari = pytest.mark.skipif(
    not importlib.util.find_spec("minari"), reason="`make setup-policy` installs it"
)


class Episodes:
    """Three episodes of 4, 1 and 5 steps: the first ends by a terminal, the others are cut."""

    lengths = (4, 1, 5)

    def __init__(self) -> None:
        dice = np.random.default_rng(0)
        self.seen = [dice.normal(size=(n + 1, 3)).astype(np.float32) for n in self.lengths]
        self.done = [dice.uniform(-1, 1, (n, 2)).astype(np.float32) for n in self.lengths]
        self.given = [dice.normal(size=n).astype(np.float32) for n in self.lengths]
        self.cost = [dice.integers(0, 2, n).astype(np.float32) for n in self.lengths]
        self.terminal = [np.arange(n) == (n - 1 if i == 0 else -1) for i, n in enumerate(self.lengths)]
        self.timeout = [np.arange(n) == (n - 1 if i > 0 else -1) for i, n in enumerate(self.lengths)]

    def rows(self, *, following: bool, costs: bool) -> dict[str, np.ndarray]:
        arrays = {
            "observations": np.concatenate([s[:-1] for s in self.seen]),
            "actions": np.concatenate(self.done),
            "rewards": np.concatenate(self.given),
            "terminals": np.concatenate(self.terminal),
            "timeouts": np.concatenate(self.timeout),
        }
        if following:
            arrays["next_observations"] = np.concatenate([s[1:] for s in self.seen])
        if costs:
            arrays["costs"] = np.concatenate(self.cost)
        return arrays


EPISODES = Episodes()


def write_hdf5(path: Path, arrays: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file.create_dataset(key, data=value, compression="gzip")
    return path


def assert_holds(data: Transitions, expected: dict[str, np.ndarray]) -> None:
    found = data.arrays()
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key


def message(call: Callable[[], object]) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        call()
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300
    return " | ".join([caught.value.message, *caught.value.hints])


# --- DSRL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [False, True])
def test_dsrl(columns: bool, tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    written = dict(rows)
    if columns:
        # Some of its files have columns, and flags as numbers.
        for key in ("rewards", "costs", "terminals"):
            written[key] = rows[key].astype(np.float64)[:, None]
    path = write_hdf5(tmp_path / "data.hdf5", written)
    data = read(path)
    assert_holds(data, rows)
    assert data.trajectories() == [slice(0, 4), slice(4, 5), slice(5, 10)]
    assert np.allclose(data.episode_costs(), [c.sum() for c in EPISODES.cost])
    assert_holds(read(path, "dsrl"), rows)


@pytest.mark.parametrize("key", ["costs", "next_observations"])
def test_dsrl_misses_a_key(key: str, tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    rows[f"{key}_"] = rows.pop(key)
    path = write_hdf5(tmp_path / "data.hdf5", rows)
    said = message(lambda: read(path, "dsrl"))
    assert said.startswith(f"{path} has no {key!r} | did you mean '{key}_'?")
    assert 'layout = "d4rl"' in said
    assert "--layout d4rl" in said


# --- D4RL -----------------------------------------------------------------------------------------------


def test_d4rl_has_no_next_observations(tmp_path: Path) -> None:
    """A row before a timeout has a next one, the timeout itself has not: it is left out."""
    data = read(write_hdf5(tmp_path / "data.hdf5", EPISODES.rows(following=False, costs=False)))
    expected: dict[str, list[Any]] = {key: [] for key in data.arrays()}
    for number, length in enumerate(Episodes.lengths):
        steps = length if number == 0 else length - 1
        for t in range(steps):
            expected["observations"].append(EPISODES.seen[number][t])
            expected["actions"].append(EPISODES.done[number][t])
            expected["rewards"].append(EPISODES.given[number][t])
            terminal = number == 0 and t == length - 1
            expected["terminals"].append(terminal)
            expected["timeouts"].append(number > 0 and t == steps - 1)
            expected["next_observations"].append(EPISODES.seen[number][t if terminal else t + 1])
    assert_holds(data, {key: np.array(value) for key, value in expected.items()})
    assert data.trajectories() == [slice(0, 4), slice(4, 8)]


def test_d4rl_with_all_there_is(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    path = write_hdf5(tmp_path / "data.hdf5", {**rows, "infos": np.zeros(3)})
    assert_holds(read(path, "d4rl"), rows)


def test_d4rl_of_its_first_version_has_no_timeouts(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=False, costs=False)
    del rows["timeouts"]
    data = read(write_hdf5(tmp_path / "data.hdf5", rows))
    assert len(data) == 9  # only the file's last row has none after it
    assert data.trajectories() == [slice(0, 4), slice(4, 9)]
    assert data.timeouts.tolist() == [False] * 8 + [True]


def test_d4rl_of_single_rows_is_refused(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=False, costs=False)
    rows["timeouts"], rows["terminals"] = np.ones(10, bool), np.zeros(10, bool)
    path = write_hdf5(tmp_path / "data.hdf5", rows)
    said = message(lambda: read(path))
    assert said.startswith(f"{path}: no row has a next one: each trajectory is a single row")
    assert "next_observations" in said


@pytest.mark.parametrize("name", ["cost", "Costs", "costss", "COST", "csots"])
def test_misspelt_costs_are_not_left_out_in_silence(name: str, tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    rows[name] = rows.pop("costs")
    path = write_hdf5(tmp_path / "data.hdf5", rows)
    assert message(lambda: read(path)).startswith(
        f"{path} has {name!r} and no 'costs' | did you mean 'costs'?"
    )
    assert read(path, "d4rl").costs is None


def test_misspelt_costs_of_npz_are_not_left_out_in_silence(tmp_path: Path) -> None:
    name, wrong = "costs", "Cost"
    rows = EPISODES.rows(following=True, costs=True)
    rows[wrong] = rows.pop(name)
    path = tmp_path / "data.npz"
    np.savez(path, **rows)
    assert message(lambda: read(path)).startswith(f"{path} has {wrong!r} and no {name!r} | did you mean")
    rows["goals"] = rows.pop(wrong)
    np.savez(path, **rows)
    read(path)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
def test_ragged_lists_are_refused(name: str) -> None:
    rows = EPISODES.rows(following=True, costs=True) | {name: [[1.0, 2.0], [1.0]]}
    assert message(lambda: from_arrays(rows)) == f"the arrays: {name!r} holds lists of unequal length"


def test_d4rl_may_hold_more(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "data.hdf5", EPISODES.rows(following=True, costs=False))
    with h5py.File(path, "a") as file:
        for key in ("infos/qpos", "infos/cost", "metadata/algorithm", "goals", "contacts", "constants"):
            file[key] = np.zeros(10)
    assert_holds(read(path), EPISODES.rows(following=True, costs=False))


# --- broken files ---------------------------------------------------------------------------------------


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "data.hdf5", EPISODES.rows(following=True, costs=True))
    whole = path.read_bytes()
    for size in (0, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert f"{path} is cut short, or no HDF5 file" in message(lambda: read(path))


def test_damage_inside_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, value in EPISODES.rows(following=True, costs=True).items():
            file.create_dataset(key, data=value, compression="gzip", fletcher32=True)
        offset = file["actions"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[offset + 8] ^= 0xFF
    path.write_bytes(whole)
    assert f"{path} is cut short, or no HDF5 file" in message(lambda: read(path))


def test_a_damaged_heap_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "data.hdf5", EPISODES.rows(following=True, costs=True))
    path.write_bytes(path.read_bytes().replace(b"HEAP", b"HEEP"))
    assert f"{path} is cut short, or no HDF5 file" in message(lambda: read(path))
    path = write_hdf5(tmp_path / "facts.hdf5", EPISODES.rows(following=True, costs=True))
    with h5py.File(path, "a") as file:
        file.attrs["expertise"] = "{"
    assert f"{path} is cut short, or no HDF5 file" in message(lambda: facts_of(path))


def test_arrays_in_another_file_are_refused(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    other = write_hdf5(tmp_path / "other.hdf5", rows)
    actions = rows["actions"]
    actions.tofile(tmp_path / "raw")
    view = h5py.VirtualLayout(actions.shape, "f4")
    view[:] = h5py.VirtualSource(str(other), "actions", actions.shape)
    ways: dict[str, Callable[[Any], object]] = {
        "link": lambda f: f.update(actions=h5py.ExternalLink("other.hdf5", "/actions")),
        "dangling": lambda f: f.update(actions=h5py.ExternalLink("nowhere.hdf5", "/actions")),
        "indirect": lambda f: f.update(
            out=h5py.ExternalLink("other.hdf5", "/actions"), actions=h5py.SoftLink("/out")
        ),
        "raw": lambda f: f.create_dataset(
            "actions", actions.shape, "f4", external=[(str(tmp_path / "raw"), 0, actions.nbytes)]
        ),
        "view": lambda f: f.create_virtual_dataset("actions", view),
    }
    for name, add in ways.items():
        path = write_hdf5(tmp_path / f"{name}.hdf5", {k: v for k, v in rows.items() if k != "actions"})
        with h5py.File(path, "a") as file:
            add(file)
        said = message(lambda path=path: read(path))  # type: ignore[misc]
        assert said.startswith(f"{path}: 'actions' is in another file, which is not followed"), name
    path = write_hdf5(tmp_path / "soft.hdf5", {k: v for k, v in rows.items() if k != "actions"})
    with h5py.File(path, "a") as file:
        file["actions"] = h5py.SoftLink("/nowhere")
    assert f"{path} is cut short, or no HDF5 file" in message(lambda: read(path))


def test_a_group_in_the_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "data.h5", EPISODES.rows(following=True, costs=True))
    with h5py.File(path, "a") as file:
        del file["actions"]
        file.create_group("actions")
    assert message(lambda: read(path)) == f"{path}: 'actions' is a group, not an array"


def test_what_is_in_a_file_is_checked_with_its_name(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=True)
    rows["actions"] = rows["actions"] * 3
    path = write_hdf5(tmp_path / "data.hdf5", rows)
    assert f"{path}: 'actions' reach" in message(lambda: read(path))
    rows["actions"][2, 1] = np.nan
    path = write_hdf5(tmp_path / "nan.hdf5", rows)
    assert f"{path}: 'actions' holds nan in row 2" in message(lambda: read(path))


def test_a_missing_file_and_an_unknown_ending(tmp_path: Path) -> None:
    assert message(lambda: read(tmp_path / "no.hdf5")) == f"no file at {tmp_path / 'no.hdf5'}"
    other = tmp_path / "data.csv"
    other.write_text("1,2")
    assert "unknown ending '.csv'" in message(lambda: read(other))
    assert "layout: unknown 'dsr' | did you mean 'dsrl'?" in message(lambda: read(other, "dsr"))


# --- plain arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Callable[..., None], tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=False)
    save(tmp_path / "data.npz", **rows)
    assert_holds(read(tmp_path / "data.npz"), rows)


def test_npz_with_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    rows = EPISODES.rows(following=True, costs=False)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "data.npz"
    np.savez(path, **{**rows, "costs": np.array([Trap()] * 10, dtype=object)})
    assert message(lambda: read(path)) == f"{path}: 'costs' holds Python objects, which are never read"
    assert not (tmp_path / "sprung").exists()


def test_npz_damaged(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **EPISODES.rows(following=True, costs=False))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} is cut short, or no .npz file" in message(lambda: read(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("observations.npy", b"nothing of the kind")
    assert f"{path}: 'observations' is damaged" in message(lambda: read(path))
    np.savez_compressed(path, **EPISODES.rows(following=True, costs=False))
    whole = path.read_bytes()
    start = 30 + len("observations.npy") + 20  # behind the header of the first one
    for damaged in (
        whole[:start] + b"\xff" * 8 + whole[start + 8 :],  # zlib.error
        whole.replace(b"\x08\x00\x00\x00!\x00", b"\x63\x00\x00\x00!\x00"),  # an unknown compression
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        assert f"{path}" in message(lambda: read(path))
    for header in ("{'descr': '<f4', (", "['x', (1]", "'\n"):
        with zipfile.ZipFile(path, "w") as archive:
            content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            archive.writestr("observations.npy", content)
        assert f"{path}: 'observations' is damaged" in message(lambda: read(path))
    path.write_bytes(b"")
    assert f"{path} is cut short" in message(lambda: read(path))
    assert message(lambda: read(tmp_path / "no.npz")) == f"no file at {tmp_path / 'no.npz'}"


# --- Minari ---------------------------------------------------------------------------------------------


def minari_buffers(*, costs: str = "all") -> list[Any]:
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for number in range(3):
        infos = {"other": np.zeros(len(EPISODES.seen[number]))}
        if costs == "all" or (costs == "some" and number == 1):
            # Minari keeps the info of the reset, too, in front.
            infos["cost"] = np.concatenate([[9.0], EPISODES.cost[number]])
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=EPISODES.seen[number],
                actions=EPISODES.done[number],
                rewards=list(EPISODES.given[number]),
                terminations=list(EPISODES.terminal[number]),
                truncations=list(EPISODES.timeout[number]),
                infos=infos,
            )
        )
    return buffers


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def create_minari(name: str, buffers: list[Any], **spaces: Any) -> None:
    import warnings

    import gymnasium
    import minari

    box = gymnasium.spaces.Box
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and code that are not named
        minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=spaces.get("observation_space", box(-np.inf, np.inf, (3,), np.float32)),
            action_space=box(-1, 1, (2,), np.float32),
        )


@needs_minari
@pytest.mark.parametrize("costs", ["all", "none"])
def test_minari_by_id_and_by_folder(costs: str, minari_root: Path) -> None:
    create_minari("here/toy-v0", minari_buffers(costs=costs))
    expected = EPISODES.rows(following=True, costs=costs == "all")
    assert_holds(read("here/toy-v0"), expected)
    assert_holds(read(minari_root / "here" / "toy-v0"), expected)
    assert_holds(read(minari_root / "here" / "toy-v0" / "data", "minari"), expected)


@needs_minari
def test_minari_that_is_not_there_is_not_fetched(minari_root: Path) -> None:
    said = message(lambda: read("mujoco/hopper/expert-v0"))
    assert said.startswith("no Minari data set 'mujoco/hopper/expert-v0', neither as a folder nor in")
    assert "minari download mujoco/hopper/expert-v0" in said


@needs_minari
def test_minari_damaged(minari_root: Path) -> None:
    create_minari("toy-v0", minari_buffers())
    file = minari_root / "toy-v0" / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    assert "toy-v0 is cut short, or no Minari data set" in message(lambda: read("toy-v0"))
    for text in ("{", "null", "[]", "{}", '{"data_format": 3}'):
        (file.parent / "metadata.json").write_text(text)
        assert "toy-v0 is cut short, or no Minari data set" in message(lambda: read("toy-v0"))


@needs_minari
def test_minari_with_episodes_in_another_file_is_refused(minari_root: Path) -> None:
    create_minari("toy-v0", minari_buffers())
    path = minari_root / "toy-v0" / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        file.move("episode_1/rewards", "kept")
        file["episode_1/rewards"] = h5py.ExternalLink(str(path), "/kept")
    assert "'episode_1/rewards' is in another file" in message(lambda: read("toy-v0"))


@needs_minari
def test_minari_with_costs_in_some_episodes_is_refused(minari_root: Path) -> None:
    create_minari("toy-v0", minari_buffers(costs="some"))
    assert message(lambda: read("toy-v0")).startswith("toy-v0, episode 0 has no 'infos/cost', others have")


@needs_minari
def test_minari_with_observations_in_a_dictionary_is_flattened_by_name(minari_root: Path) -> None:
    import gymnasium

    spaces, buffers = gymnasium.spaces, minari_buffers(costs="none")
    dice = np.random.default_rng(1)
    seen = []
    for buffer in buffers:
        number = len(buffer.observations)
        parts = {"z": buffer.observations[:, :1], "a": {"y": buffer.observations[:, 1:], "m": None}}
        parts["a"]["m"] = dice.integers(0, 3, number)
        seen.append(parts)
    nested = [type(b)(**{**vars(b), "observations": parts}) for b, parts in zip(buffers, seen, strict=True)]
    boxes = [spaces.Box(-np.inf, np.inf, (width,), np.float32) for width in (1, 2)]
    inner = spaces.Dict({"y": boxes[1], "m": spaces.Discrete(3)})
    space = spaces.Dict({"z": boxes[0], "a": inner})
    create_minari("toy-v0", nested, observation_space=space)
    data = read("toy-v0")
    # The judge: gymnasium's own flattening, a step at a time.
    expected = [
        spaces.flatten(
            space, {"z": parts["z"][t], "a": {"y": parts["a"]["y"][t], "m": int(parts["a"]["m"][t])}}
        )
        for parts, length in zip(seen, Episodes.lengths, strict=True)
        for t in range(length)
    ]
    assert np.array_equal(data.observations, np.array(expected, np.float32))
    assert any("a/m (3), a/y (2), z (1)" in note for note in data.notes)
    chosen = read("toy-v0", observation_keys=["z", "a/y"])
    assert np.array_equal(chosen.observations, EPISODES.rows(following=True, costs=False)["observations"])


# --- in a recipe ----------------------------------------------------------------------------------------


def test_some_trajectories_by_seed(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "data.hdf5", EPISODES.rows(following=True, costs=True))
    assert len(DataConfig(path=str(path)).read()) == 10
    chosen = {tuple(DataConfig(path=str(path), trajectories=1, seed=s).read().rewards) for s in range(12)}
    assert chosen == {tuple(rewards) for rewards in EPISODES.given}
    assert "4 trajectories are wanted" in message(DataConfig(path=str(path), trajectories=4).read)
    assert "layout: unknown 'dslr' | did you mean 'dsrl'?" in message(
        lambda: DataConfig(path=str(path), layout="dslr")
    )


@pytest.mark.parametrize(("layout", "module"), [("dsrl", "h5py"), ("minari", "minari")])
def test_a_missing_package_is_named(
    layout: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    path = write_hdf5(tmp_path / "data.hdf5", {"observations": np.zeros(1)})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra) as caught:
        read(path, layout)
    assert "make setup-policy" in caught.value.hints[1]
