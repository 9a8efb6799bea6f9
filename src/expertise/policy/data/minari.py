"""Minari's data sets: by id from where Minari keeps them on this machine, or by the path of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, ExpertiseError, first_line
from expertise.policy.data.checks import checked
from expertise.policy.data.transitions import Transitions
from expertise.policy.extras import needed, quiet

_COST = "cost"
_HDF5 = "main_data.hdf5"
"""Where Minari has the episodes, unless another format was asked for."""


def read_minari(path: str) -> Transitions:
    """A Minari data set; nothing is downloaded.

    Args:
        path: a folder (that holds `data`, or is it), or an id such as `mujoco/hopper/expert-v0`. An episode
            has one observation more than actions. Costs are read from `infos/cost`, where they are.

    Raises:
        DataError: there is no such data set, it is damaged, its observations or actions are not flat arrays,
            or an array is not as it should be.
        MissingExtra: Minari is not installed.
    """
    folder = _find(path)
    try:
        _refuse_links(folder / _HDF5)
        with quiet():
            episodes = list(needed("minari", f"reading {path}").MinariDataset(folder).iterate_episodes())
    except ExpertiseError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: Minari lacks a package for its format: {first_line(error)}") from None
    except Exception as error:  # KeyError, AttributeError, AssertionError, …: by what is damaged
        raise DataError(f"{path} is cut short, or no Minari data set: {first_line(error)}") from None
    if not episodes:
        raise DataError(f"{path} has no episodes")
    with_costs = [_COST in (episode.infos or {}) for episode in episodes]
    if any(with_costs) and not all(with_costs):
        missing = with_costs.index(False)
        raise DataError(f"{path}: episode {missing} has no 'infos/{_COST}', others have")
    parts = [_arrays(episode, f"{path}, episode {episode.id}", with_costs[0]) for episode in episodes]
    return checked({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, path)


def _find(path: str) -> Path:
    for folder in (Path(path) / "data", Path(path)):
        if (folder / "metadata.json").is_file():
            return folder
    root = needed("minari", f"reading {path}").storage.datasets_root_dir.get_dataset_path(path)
    if not (root / "data" / "metadata.json").is_file():
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


def _arrays(episode: Any, where: str, with_cost: bool) -> dict[str, Any]:
    for key in ("observations", "actions"):
        if not isinstance(getattr(episode, key), np.ndarray):
            raise DataError(f"{where}: {key!r} are not one array", "flatten them (minari's StepDataCallback)")
    steps = len(episode.rewards)
    if not steps:
        raise DataError(f"{where} has no steps")
    observations = episode.observations.reshape(len(episode.observations), -1)
    if len(observations) != steps + 1:
        raise DataError(f"{where}: 'observations' has {len(observations)} rows for {steps} steps")
    arrays = {
        "observations": observations[:-1],
        "next_observations": observations[1:],
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
