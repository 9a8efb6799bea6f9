"""Data into files that other tools read: DSRL's HDF5 (without costs: D4RL's), or Minari's folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError
from expertise.policy.data.actions import Bounds
from expertise.policy.data.hdf5 import FACTS, HIGH, LOW, opened
from expertise.policy.data.transitions import Transitions
from expertise.policy.extras import needed, quiet
from expertise.registry import Registry
from expertise.runs.files import atomic_folder, write_atomic

WRITERS = Registry(
    "layout to write",
    {"dsrl": "expertise.policy.data.write:write_dsrl", "minari": "expertise.policy.data.write:write_minari"},
)
"""Name → function of folder, name, data, facts and bounds, which gives the path that it wrote."""

_STATES = "states"
_CHUNK = 4096


def write_dsrl(
    folder: Path, name: str, data: Transitions, facts: Mapping[str, Any], bounds: Bounds | None = None
) -> Path:
    """Write `<name>.hdf5` with flat rows, next observations included.

    An observation that is also a next one is stored once: both arrays are views ("virtual data sets") of one
    array `states`, which HDF5 readers do not notice. The same data give the same bytes.

    Args:
        folder: where.
        name: of the file.
        data: the transitions.
        facts: what is noted of them: JSON in the attribute `expertise`.
        bounds: of the environment's actions: they are written in its units, and the bounds as the attributes
            `action_low` and `action_high`; None: actions are written in [-1, 1].

    Raises:
        MissingExtra: h5py is not installed.
        DiskError: the file cannot be written.
    """
    h5py = needed("h5py", "writing recorded data")
    path = folder / f"{name}.hdf5"
    # In memory: the file is to appear whole.
    with h5py.File(name, "w", driver="core", backing_store=False) as file:
        file.attrs[FACTS] = json.dumps(facts)
        arrays = data.arrays()
        if bounds is not None:
            file.attrs[LOW], file.attrs[HIGH] = bounds.low, bounds.high
            arrays["actions"] = bounds.unscaled(data.actions)
        if _is_chained(data):
            _add_states(h5py, file, data)
            del arrays["observations"], arrays["next_observations"]
        for key, array in arrays.items():
            _add(file, key, array)
        file.flush()
        content = file.id.get_file_image()
    write_atomic(path, content)
    return path


def write_minari(
    folder: Path, name: str, data: Transitions, facts: Mapping[str, Any], bounds: Bounds | None = None
) -> Path:
    """Write a Minari data set `<name>-v0/`, an episode per trajectory; costs become `infos/cost`.

    Args:
        folder: where; `MINARI_DATASETS_PATH` may be set to it, to find the data by id.
        name: of the data set.
        data: the transitions.
        facts: what is noted of them: JSON in the metadata's description.
        bounds: of the environment's actions: they are written in its units, and the bounds are those of the
            action space; None: [-1, 1].

    Raises:
        DataError: in a trajectory a next observation is not the one that follows.
        MissingExtra: Minari is not installed.
        DiskError: the folder cannot be written.
    """
    what = "writing a Minari data set"
    minari, gymnasium = needed("minari", what), needed("gymnasium", what)
    buffer = needed("minari.data_collector", what).EpisodeBuffer
    storage_class = needed("minari.dataset.minari_storage", what).MinariStorage
    if not _is_chained(data):
        raise DataError("a trajectory's next observations are not those that follow; Minari cannot hold it")
    spaces = gymnasium.spaces
    seen = spaces.Box(-np.inf, np.inf, (data.observations.shape[1],), np.float32)
    if bounds is None:
        done = spaces.Box(-1.0, 1.0, (data.actions.shape[1],), np.float32)
    else:
        done = spaces.Box(np.float32(bounds.low), np.float32(bounds.high), dtype=np.float32)
        data = dataclasses.replace(data, actions=bounds.unscaled(data.actions))
    path = folder / f"{name}-v0"
    with quiet(), atomic_folder(path) as aside:
        # Minari puts a relative path before itself once more.
        place = aside.absolute() / "data"
        storage = storage_class.new(place, observation_space=seen, action_space=done)
        description = json.dumps({FACTS: facts})
        storage.update_metadata(
            {"dataset_id": f"{name}-v0", "minari_version": minari.__version__, "description": description}
        )
        storage.update_episodes([_buffer(buffer, data.select(rows)) for rows in data.trajectories()])
    return path


def facts_of(path: str | Path) -> dict[str, Any]:
    """What `write_dsrl` noted of the data in a file; empty for a file of someone else.

    Raises:
        DataError: it is no HDF5 file, or is damaged.
    """
    with opened(str(path)) as file:
        found: dict[str, Any] = json.loads(file.attrs.get(FACTS, "{}"))
        return found


def _is_chained(data: Transitions) -> bool:
    """Whether in each trajectory the next observation is the one that follows."""
    return all(
        np.array_equal(data.next_observations[rows][:-1], data.observations[rows][1:])
        for rows in data.trajectories()
    )


def _add(file: Any, key: str, array: np.ndarray) -> None:
    chunk = (min(len(array), _CHUNK), *array.shape[1:])
    file.create_dataset(
        key, data=array, chunks=chunk, compression="gzip", compression_opts=9, shuffle=True, fletcher32=True
    )


def _add_states(h5py: Any, file: Any, data: Transitions) -> None:
    cuts = data.trajectories()
    states = np.concatenate(
        [part for r in cuts for part in (data.observations[r], data.next_observations[r][-1:])]
    )
    _add(file, _STATES, states)
    view, source = (h5py.h5s.create_simple(shape) for shape in (data.observations.shape, states.shape))
    for key, ahead in (("observations", 0), ("next_observations", 1)):
        # By hand: h5py's own function notes the time of day, and the same data would give other bytes.
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_obj_track_times(False)
        for number, rows in enumerate(cuts):
            size = (rows.stop - rows.start, states.shape[1])
            # Each trajectory before has one state more than it has rows.
            for space, start in ((view, rows.start), (source, rows.start + number + ahead)):
                space.select_hyperslab((start, 0), size)
            plan.set_virtual(view, b".", _STATES.encode(), source)
        view.select_all()
        h5py.h5d.create(file.id, key.encode(), h5py.h5t.IEEE_F32LE, view, plan)


def _buffer(kind: Callable[..., Any], part: Transitions) -> Any:
    infos = {}
    if part.costs is not None:
        # Minari keeps an entry for the reset in front.
        infos["cost"] = np.concatenate([np.zeros(1, np.float32), part.costs])
    return kind(
        observations=np.concatenate([part.observations, part.next_observations[-1:]]),
        actions=part.actions,
        rewards=part.rewards.tolist(),
        terminations=part.terminals.tolist(),
        truncations=part.timeouts.tolist(),
        infos=infos,
    )
