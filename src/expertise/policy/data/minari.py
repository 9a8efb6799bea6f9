"""Minari's data sets: by id from where Minari keeps them on this machine, or by the path of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, ExpertiseError, first_line
from expertise.policy.data.actions import Bounds
from expertise.policy.data.recorded import Recorded
from expertise.policy.extras import needed, quiet
from expertise.runs.pointers import refuse_pointer

_COST = "cost"
_METADATA = "metadata.json"
_HDF5 = "main_data.hdf5"
"""Where Minari has the episodes, unless another format was asked for."""


def read_minari(path: str) -> Recorded:
    """A Minari data set; nothing is downloaded.

    Args:
        path: a folder (that holds `data`, or is it), or an id such as `mujoco/hopper/expert-v0`. An episode
            has one observation more than actions. Costs are read from `infos/cost`, where they are. The
            action space that it declares gives the bounds of the actions.

    Raises:
        DataError: there is no such data set, it is damaged, its actions are no box, its observations no
            numbers, or an array is not as it should be.
        MissingExtra: Minari is not installed.
    """
    folder = _find(path)
    try:
        for name in (_METADATA, _HDF5):
            if (folder / name).is_file():
                refuse_pointer(folder / name)
        _refuse_links(folder / _HDF5)
        with quiet():
            data = needed("minari", f"reading {path}").MinariDataset(folder)
            found = list(_episodes(data, path))
            space, actions = data.observation_space, data.action_space
            boxes = needed("gymnasium", f"reading {path}").spaces
    except ExpertiseError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: Minari lacks a package for its format: {first_line(error)}") from None
    except Exception as error:  # KeyError, AttributeError, AssertionError, …: by what is damaged
        raise _damaged(path, error) from None
    if not found:
        raise DataError(f"{path} has no episodes")
    if not isinstance(actions, boxes.Box):
        raise DataError(f"{path}: its actions are {actions}; policies need a Box, numbers between two bounds")
    whole = [(name, episode) for name, episode in found if not isinstance(episode, DataError)]
    with_costs = any(_COST in (episode.infos or {}) for _, episode in whole)
    return Recorded(
        where=path,
        episodes=[
            (name, episode if isinstance(episode, DataError) else _arrays(episode, space, name, with_costs))
            for name, episode in found
        ],
        bounds=Bounds.of(actions.low, actions.high),
    )


def _episodes(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each episode, or why it cannot be read."""
    for number in data.episode_indices.tolist():
        name = f"{path}, episode {number}"
        try:
            (episode,) = data.iterate_episodes([number])
        except ImportError:
            raise
        except Exception as error:  # KeyError, OSError, …: by what is damaged
            episode = _damaged(name, error)
        yield name, episode


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(f"{where} is cut short, or no Minari data set: {first_line(error)}")


def _find(path: str) -> Path:
    for folder in (Path(path) / "data", Path(path)):
        if (folder / _METADATA).is_file():
            return folder
    root = needed("minari", f"reading {path}").storage.datasets_root_dir.get_dataset_path(path)
    if not (root / "data" / _METADATA).is_file():
        raise DataError(
            f"no Minari data set {path!r}, neither as a folder nor in {root.parent}",
            f"`minari download {path}` fetches one that Farama hosts",
        )
    return Path(root) / "data"


def _refuse_links(path: Path) -> None:
    """Refuse arrays in other files: data must not change with what lies beside them."""
    if not path.is_file():
        return
    with needed("h5py", f"reading {path}").File(path, "r") as file:
        # What is not None ends the walk.
        found = file.visititems_links(lambda name, link: name if hasattr(link, "filename") else None)
    if found is not None:
        raise DataError(f"{path}: {found!r} is in another file, which is not followed")


def _arrays(episode: Any, space: Any, where: str, with_cost: bool) -> dict[str, Any] | DataError:
    """The arrays of an episode, or what is wrong with it."""
    steps = len(episode.rewards)
    if not steps:
        return DataError(f"{where} has no steps")
    for key in ("terminations", "truncations"):
        if len(getattr(episode, key)) != steps:
            return DataError(f"{where}: {key!r} has {len(getattr(episode, key))} rows for {steps} steps")
    if with_cost and _COST not in (episode.infos or {}):
        return DataError(f"{where} has no 'infos/{_COST}', others have")
    try:
        seen = _numbers(episode.observations, space, where)
    except DataError as error:
        return error
    rows = next(iter(_leaves(seen)), ())
    if any(len(part) != steps + 1 for part in _leaves(seen)):
        return DataError(f"{where}: 'observations' has {len(rows)} rows for {steps} steps")
    arrays = {
        "observations": _each(seen, lambda part: part[:-1]),
        "next_observations": _each(seen, lambda part: part[1:]),
        "actions": episode.actions.reshape(len(episode.actions), -1),
        "rewards": episode.rewards,
        "terminals": episode.terminations,
        # An episode that was neither done nor cut ends here all the same: the next one is another.
        "timeouts": np.append(episode.truncations[:-1], not episode.terminations[-1]),
    }
    if with_cost:
        # The first entry belongs to the reset, where there is one.
        costs = episode.infos[_COST]
        arrays["costs"] = costs[len(costs) - steps :]
    return arrays


def _numbers(value: Any, space: Any, where: str) -> Any:
    """Observations of a space as rows of numbers, in the parts that the space has.

    As `gymnasium.spaces.flatten`: what is one of n becomes n numbers, all 0 but for a 1.
    """
    kind = type(space).__name__
    if kind == "Dict":
        return {name: _numbers(value[name], inner, where) for name, inner in space.spaces.items()}
    if kind == "Tuple":
        return tuple(_numbers(v, inner, where) for v, inner in zip(value, space.spaces, strict=True))
    if kind in ("Discrete", "MultiDiscrete"):
        choices, first = np.atleast_1d(space.n if kind == "Discrete" else space.nvec), space.start
        index = np.reshape(value, (len(value), -1)) - np.ravel(first)
        if ((index < 0) | (index >= choices.ravel())).any():
            raise DataError(f"{where}: 'observations' lie outside {space}")
        columns = [np.eye(n, dtype=np.float32)[index[:, i]] for i, n in enumerate(choices.ravel().tolist())]
        return np.concatenate(columns, 1)
    if kind not in ("Box", "MultiBinary") or not isinstance(value, np.ndarray):
        raise DataError(f"{where}: 'observations' of {kind} are no numbers", "leave them out of the data set")
    return value.reshape(len(value), -1)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Every part of observations, changed."""
    if isinstance(value, dict):
        return {name: _each(part, change) for name, part in value.items()}
    return tuple(_each(part, change) for part in value) if isinstance(value, tuple) else change(value)


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else None
    if parts is None:
        yield value
        return
    for part in parts:
        yield from _leaves(part)
