"""Rows, trajectories and what is made of them; needs NumPy only."""

from __future__ import annotations

import numpy as np
import pytest

from expertise.errors import DataError
from expertise.policy.data import Transitions, concatenate, from_arrays, scores


def record(lengths: tuple[int, ...], *, costs: bool = True, start: int = 0) -> Transitions:
    """Trajectories whose observation counts rows; the first ends by a terminal, the others by a timeout."""
    number = sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(number, bool), np.zeros(number, bool)
    terminals[ends[:1]], timeouts[ends[1:]] = True, True
    rows = np.arange(start, start + number, dtype=np.float32)
    arrays = {
        "observations": np.stack([rows, -rows], 1),
        "actions": np.full((number, 1), 0.5),
        "rewards": rows,
        "next_observations": np.stack([rows + 1, -rows - 1], 1),
        "terminals": terminals,
        "timeouts": timeouts,
    }
    return from_arrays({**arrays, "costs": rows % 2} if costs else arrays)


def test_trajectories_are_cut_after_terminals_timeouts_and_the_last_row() -> None:
    data = record((2, 3, 1))
    assert data.trajectories() == [slice(0, 2), slice(2, 5), slice(5, 6)]
    assert data.select(slice(0, 4)).trajectories() == [slice(0, 2), slice(2, 4)]
    assert data.select(slice(0, 0)).trajectories() == []


def test_sums_of_trajectories() -> None:
    data = record((2, 3, 1))
    assert data.returns().tolist() == [1.0, 9.0, 5.0]
    assert data.episode_costs().tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(DataError, match="have no costs"):
        data.without_costs().episode_costs()


def test_whole_trajectories_are_taken_in_the_order_given() -> None:
    taken = record((2, 3, 1)).take([2, 0])
    assert taken.rewards.tolist() == [5.0, 0.0, 1.0]
    assert taken.terminals.tolist() == [False, False, True]
    assert taken.trajectories() == [slice(0, 1), slice(1, 3)]
    with pytest.raises(DataError, match="no trajectory 3: these data have 3"):
        record((2, 3, 1)).take([3])
    with pytest.raises(DataError, match="no trajectory -1"):
        record((2, 3, 1)).take([-1])


def test_a_split_keeps_trajectories_whole_and_loses_none() -> None:
    data = record((2, 3, 1, 4, 2))
    train, held_out = data.split(0.4, seed=1)
    assert len(held_out.trajectories()) == 2
    assert sorted([*train.rewards, *held_out.rewards]) == data.rewards.tolist()
    assert held_out.rewards.tolist() == data.split(0.4, seed=1)[1].rewards.tolist()
    others = {tuple(data.split(0.4, seed)[1].rewards) for seed in range(9)}
    assert len(others) > 1
    # However small the part, neither side is empty.
    assert [len(side.trajectories()) for side in data.split(0.01, 0)] == [4, 1]
    assert [len(side.trajectories()) for side in data.split(1.0, 0)] == [1, 4]
    with pytest.raises(DataError, match="cannot split 1"):
        record((3,)).split(0.5, 0)


def test_the_first_of_a_drawn_order_grow_into_one_another() -> None:
    data = record((2, 3, 1, 4, 2)).shuffled(3)
    few, more = data.first(2), data.first(4)
    assert more.rewards[: len(few)].tolist() == few.rewards.tolist()
    with pytest.raises(DataError, match="6 trajectories are wanted, these data have 5"):
        data.first(6)


def test_what_is_put_together_stays_cut() -> None:
    cut_short = record((2, 3)).select(slice(0, 4))
    whole = concatenate([cut_short, record((2,), start=10)])
    assert whole.rewards.tolist() == [0, 1, 2, 3, 10, 11]
    assert whole.trajectories() == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert whole.timeouts.tolist() == [False, False, False, True, False, False]
    assert not cut_short.timeouts.any()  # what went in is left alone


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(DataError, match="with costs and data without"):
        concatenate([record((2,)), record((2,), costs=False)])
    wide = from_arrays({**record((2,)).arrays(), "actions": np.zeros((2, 3))})
    with pytest.raises(DataError, match="actions of width 1 and 3"):
        concatenate([record((2,)), wide])
    with pytest.raises(DataError, match="no data to put together"):
        concatenate([])


def test_rounding_keeps_so_many_bits() -> None:
    dice = np.random.default_rng(0)
    data = record((50, 50))
    numbers = (dice.normal(size=(100, 2)) * 10.0 ** dice.integers(-3, 4, (100, 2))).astype(np.float32)
    data = from_arrays({**data.arrays(), "observations": numbers, "actions": np.tanh(numbers)})
    rounded = data.rounded(12)
    assert np.allclose(rounded.observations, numbers, rtol=2**-13, atol=0)
    assert not np.array_equal(rounded.observations, numbers)
    assert ((rounded.observations.view(np.uint32) & 0x7FF) == 0).all()
    assert np.abs(rounded.actions).max() <= 1
    assert np.array_equal(rounded.costs, data.costs)  # small whole numbers are kept as they are
    assert np.array_equal(rounded.terminals, data.terminals)
    assert data.rounded(23) is data


# --- arrays from elsewhere ------------------------------------------------------------------------------


def test_types_are_made_the_promised_ones() -> None:
    arrays = {name: array.tolist() for name, array in record((2, 3)).arrays().items()}
    arrays["rewards"] = [[r] for r in arrays["rewards"]]
    arrays["terminals"] = [[float(t)] for t in arrays["terminals"]]
    data = from_arrays(arrays)
    assert {n: a.dtype for n, a in data.arrays().items()} == {
        **dict.fromkeys(("observations", "actions", "rewards", "next_observations", "costs"), np.float32),
        **dict.fromkeys(("terminals", "timeouts"), np.bool_),
    }
    assert data.rewards.shape == data.terminals.shape == (5,)


def changed(key: str, value: object) -> dict[str, object]:
    return {**record((2, 2)).arrays(), key: value}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("observations", np.zeros(4), "the arrays: 'observations' has shape [4]; rows of numbers"),
        ("observations", np.zeros((0, 2)), "the arrays: 'observations' is empty"),
        ("observations", np.array([["a"]] * 4), "'observations' holds <U1, not numbers"),
        ("observations", np.full((4, 2), np.nan), "'observations' holds nan in row 0"),
        ("next_observations", np.zeros((4, 3)), "'next_observations' are 3 wide, 'observations' 2"),
        ("rewards", np.zeros(3), "'rewards' has 3 rows, 'observations' has 4"),
        ("rewards", np.zeros((4, 2)), "'rewards' has shape [4, 2]; one number per row"),
        ("rewards", np.array([0, 0, np.inf, 0]), "'rewards' holds inf in row 2"),
        ("rewards", np.array([0, 1e300, 0, 0]), "'rewards' holds inf in row 1"),
        ("costs", np.array([0, 0, 0, np.nan]), "'costs' holds nan in row 3"),
        ("terminals", np.array([0, 2, 0, 0]), "'terminals' holds 2; true or false"),
        ("actions", np.array([[0], [0], [-1.5], [0.0]]), "'actions' reach -1.5 in row 2; they must lie in"),
        ("actions", np.zeros((4, 0)), "'actions' has shape [4, 0]"),
        ("actions", np.array([[object()]] * 4), "'actions' holds object, not numbers"),
    ],
)
def test_wrong_arrays_are_named_in_one_line(key: str, value: object, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        from_arrays(changed(key, value))
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_array_is_named_with_the_nearest() -> None:
    arrays = dict(record((2, 2)).arrays())
    arrays["next_observation"] = arrays.pop("next_observations")
    with pytest.raises(DataError) as caught:
        from_arrays(arrays, "mine")
    assert caught.value.message == "mine has 'next_observation' and no 'next_observations'"
    assert caught.value.hints == ("did you mean 'next_observations'? rename it",)


def test_actions_that_were_rounded_over_the_edge_are_put_on_it() -> None:
    data = from_arrays(changed("actions", np.array([[1.00001], [-1.00001], [0], [1]])))
    assert data.actions.ravel().tolist() == [1, -1, 0, 1]


# --- normalised scores ----------------------------------------------------------------------------------


def test_scores_are_those_of_dsrl() -> None:
    assert scores.normalized_reward("BallRun", 26.339754104614258) == 0
    assert scores.normalized_reward("BallRun", 1327.445556640625) == 1
    assert scores.normalized_reward("CarRun", 389.47029) == pytest.approx(0.5, abs=1e-4)
    assert scores.normalized_cost(4.0, 5.0) == 0.8
    assert scores.normalized_cost(0.0, 0.0) == 1
    assert scores.normalized_cost(3.0, 0.0) == 4
    with pytest.raises(Exception, match="DSRL has no task 'BalRun'"):
        scores.normalized_reward("BalRun", 1.0)
