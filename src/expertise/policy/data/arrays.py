"""Plain arrays: an .npz file of `numpy.savez`, without pickles; or a dictionary in Python."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, ExpertiseError, first_line
from expertise.policy.data.checks import refuse_misspelt
from expertise.policy.data.flat import flat, in_parts
from expertise.policy.data.read import DataConfig
from expertise.policy.data.recorded import Recorded
from expertise.policy.data.transitions import Transitions
from expertise.runs.pointers import refuse_pointer

_ENDING = ".npy"


def read_npz(path: str) -> Recorded:
    """Data in an .npz file.

    Args:
        path: the file; see `from_arrays` for what it holds. Observations in parts are arrays of names like
            `observations/place`.

    Raises:
        DataError: the file is missing, damaged or holds Python objects, an array is missing or not as it
            should be.
    """
    if not Path(path).is_file():
        raise DataError(f"no file at {path}")
    refuse_pointer(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(_ENDING)]
            arrays = {name.removesuffix(_ENDING): _read(archive, name, path) for name in names}
    except ExpertiseError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, …: by what is damaged
        raise DataError(f"{path} is cut short, or no .npz file: {first_line(error)}") from None
    return _recorded(arrays, path)


def from_arrays(arrays: Mapping[str, Any], where: str = "the arrays", **keys: Any) -> Transitions:
    """Transitions of a dictionary of arrays.

    Args:
        arrays: `observations` [N, O] (or a dictionary of arrays with N rows each), `actions` [N, A] and
            `rewards` [N]; and, where they are there, `next_observations` like observations, `costs` [N], and
            where episodes end: `terminals` and `timeouts` [N], or another of the names in `ends`.
        where: what they are called in messages.
        keys: further ones of `DataConfig`, such as `action_low` and `action_high`.

    Raises:
        DataError: one is missing or not as it should be.
    """
    return _recorded(arrays, where).transitions(DataConfig(path=where, **keys))


def _recorded(arrays: Mapping[str, Any], where: str) -> Recorded:
    refuse_misspelt(arrays, "costs", where)
    return flat(in_parts(arrays), where, arrays)


def _read(archive: zipfile.ZipFile, name: str, path: str) -> Any:
    with archive.open(name) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # ValueError, TokenError, zlib.error, …: by what is damaged
            key = name.removesuffix(_ENDING)
            if isinstance(error, ValueError) and "Object arrays" in str(error):
                raise DataError(f"{path}: {key!r} holds Python objects, which are never read") from None
            raise DataError(f"{path}: {key!r} is damaged: {first_line(error)}") from None
