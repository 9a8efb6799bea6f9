"""Ends of episodes under the names that others give to them; needs NumPy only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertise.errors import DataError
from expertise.policy.data import Transitions, from_arrays, read
from expertise.policy.data.ends import DONES, TERMINALS, TIMEOUTS

ENDED = [False, True, False, False, False, False]
CUT = [False, False, False, True, False, False]
OVER = [False, True, False, True, False, False]


def rows(**ends: Any) -> dict[str, Any]:
    count = np.arange(6.0)
    return {
        "observations": np.stack([count, -count], 1),
        "next_observations": np.stack([count + 1, -count - 1], 1),
        "actions": np.linspace(-1, 1, 6)[:, None],
        "rewards": count,
        **ends,
    }


def said(arrays: dict[str, Any], **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        from_arrays(arrays, "mine", **keys)
    assert len(caught.value.message) < 300
    return " | ".join([caught.value.message, *caught.value.hints])


def about_ends(data: Transitions) -> list[str]:
    return [note for note in data.notes if "bounds" not in note]


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize("timeout", TIMEOUTS)
def test_every_known_name_ends_episodes(terminal: str, timeout: str) -> None:
    data = from_arrays(rows(**{terminal: ENDED, timeout: CUT}))
    assert data.trajectories() == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert data.terminals.tolist() == ENDED
    assert data.timeouts.tolist() == CUT
    assert not about_ends(data)


@pytest.mark.parametrize("name", DONES)
def test_dones_are_told_apart_by_what_stands_beside_them(name: str) -> None:
    for beside in ({"truncated": CUT}, {"terminated": ENDED}, {"timeout": CUT, "terminal": ENDED}):
        data = from_arrays(rows(**{name: OVER}, **beside))
        assert (data.terminals.tolist(), data.timeouts.tolist()) == (ENDED, CUT), beside
    alone = from_arrays(rows(**{name: OVER}))
    assert alone.terminals.tolist() == OVER
    assert any("do not say whether" in note for note in alone.notes)
    assert "end an episode in row 3" in said(rows(**{name: OVER}, terminals=ENDED, timeouts=[False] * 6))


def test_two_names_for_the_same_must_agree() -> None:
    both = from_arrays(rows(terminals=ENDED, terminated=ENDED, timeouts=CUT))
    assert both.terminals.tolist() == ENDED
    assert "'terminals' and 'terminated' disagree" in said(rows(terminals=ENDED, terminated=OVER))


@pytest.mark.parametrize(
    "name",
    [
        "time_outs",
        "Timeouts",
        "TimeLimit.truncated",
        "trunc_ation",
        "terminal_flags",
        "dones_float",
        "not_done",
        "is_last",
        "episode_end",
        "ends",
        "masks",
    ],
)
def test_other_names_that_look_like_ends_are_refused(name: str) -> None:
    heard = said(rows(**{"terminals": ENDED, name: CUT}))
    assert f"{name!r} looks like ends" in heard
    assert "'timeouts'" in heard
    assert name in said(rows(**{name: CUT}))


@pytest.mark.parametrize("name", ["episode_ids", "traj_lengths", "episode_starts", "ep_len"])
def test_indices_of_episodes_are_refused_too(name: str) -> None:
    assert name in said(rows(**{"terminals": ENDED, name: [2, 4]}))


@pytest.mark.parametrize("name", ["times", "goals", "contacts", "constants", "weights", "rewards_to_go"])
def test_other_arrays_are_left_alone(name: str) -> None:
    from_arrays(rows(**{"terminals": ENDED, name: np.linspace(0, 3, 6)}))


def test_flags_that_do_not_matter_once_all_ends_are_told() -> None:
    data = from_arrays(rows(terminals=ENDED, timeouts=CUT, episode_ids=[0, 0, 1, 1, 2, 2], is_last=OVER))
    assert len(data.trajectories()) == 3


def test_a_record_without_ends_is_said_to_be_one_trajectory() -> None:
    for ends in ({}, {"terminals": [False] * 6}, {"terminated": [0] * 6, "truncated": [0] * 6}):
        data = from_arrays(rows(**ends), "mine")
        assert len(data.trajectories()) == 1
        (note,) = about_ends(data)
        assert "mine" in note
        assert "6 rows are one trajectory" in note
    (note,) = about_ends(from_arrays(rows(terminals=ENDED)))
    assert "no timeouts" in note


def test_ends_of_another_length_are_refused() -> None:
    assert "'truncated' has 5 rows, 'observations' has 6" in said(rows(terminals=ENDED, truncated=CUT[:5]))
    assert "'dones' holds 2" in said(rows(dones=[0, 1, 2, 0, 0, 0]))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["goes on", "ended", "cut"]), min_size=6, max_size=6),
    st.sampled_from(TERMINALS),
    st.sampled_from(TIMEOUTS),
    st.booleans(),
)
def test_next_rows_never_cross_an_end(kinds: list[str], terminal: str, timeout: str, by_done: bool) -> None:
    """Without next observations: against a slow reading of the same rows, one at a time."""
    ended, cut = [k == "ended" for k in kinds], [k == "cut" for k in kinds]
    flags = {terminal: ended, timeout: cut}
    if by_done:
        flags = {"dones": [k != "goes on" for k in kinds], timeout: cut}
    arrays = rows(**flags)
    del arrays["next_observations"]
    expected = [(t, t if ended[t] else t + 1) for t in range(6) if ended[t] or (not cut[t] and t + 1 < 6)]
    if not expected:
        assert "single row" in said(arrays)
        return
    data = from_arrays(arrays)
    assert [
        (int(o[0]), int(n[0])) for o, n in zip(data.observations, data.next_observations, strict=True)
    ] == (expected)
    assert any("no next observations" in note for note in data.notes)


@pytest.mark.parametrize("name", ["next_obs", "Next_Observations", "next_states", "nxt_observations"])
def test_next_observations_under_another_name_are_refused(name: str) -> None:
    arrays = rows(terminals=ENDED)
    arrays[name] = arrays.pop("next_observations")
    assert f"{name!r} and no 'next_observations'" in said(arrays)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("step_type", [0, 2, 0, 2, 0, 1]),
        ("episode", [0, 0, 1, 1, 2, 2]),
        ("traj", [7, 7, 7, 3, 3, 3]),
        ("timesteps", [0, 1, 0, 1, 0, 1]),
        ("episode_step", [[0.0], [1.0], [0.0], [1.0], [0.0], [1.0]]),
        ("t", [0, 1, 2, 3, 0, 1]),
    ],
)
@pytest.mark.parametrize("ends", [{}, {"terminals": ENDED}])
def test_counters_that_tell_other_ends_are_refused(name: str, values: Any, ends: dict[str, Any]) -> None:
    assert f"{name!r} looks like ends" in said(rows(**ends, **{name: values}))
    # Where both kinds of ends are known there is nothing left to tell.
    from_arrays(rows(terminals=ENDED, timeouts=CUT, **{name: values}))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("timesteps", [10, 11, 12, 13, 14, 15]),
        ("timesteps", [0, 1, 0, 1, 2, 3]),
        ("episode", [4, 4, 5, 5, 5, 5]),
        ("episode", [3] * 6),
        ("eps", np.linspace(1, 0.5, 6)),
        ("steps", [1, 2]),
    ],
)
def test_counters_that_tell_nothing_new_are_let_alone(name: str, values: Any) -> None:
    assert len(from_arrays(rows(terminals=ENDED, **{name: values})).trajectories()) == 2


@pytest.mark.parametrize("key", ["TimeLimit.truncated", "timeouts", "last"])
def test_ends_within_a_group_are_refused_by_name(key: str, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="`make setup-policy` installs it")
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name, value in rows(terminals=ENDED).items():
            file[name] = value
        file["metadata/note"] = "mine"
        file[f"infos/{key}"] = CUT
        file["infos/qpos"] = np.zeros((6, 2))
        file["lost"] = h5py.SoftLink("/nowhere")
        file["away"] = h5py.ExternalLink("other.hdf5", "/data")
    with pytest.raises(DataError, match=f"'infos/{key}' looks like ends"):
        read(tmp_path / "data.hdf5")
    with h5py.File(tmp_path / "data.hdf5", "a") as file:
        file["timeouts"] = CUT
    assert len(read(tmp_path / "data.hdf5").trajectories()) == 3
