"""Plain arrays: an .npz file of `numpy.savez`, without pickles; or a dictionary in Python."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expertise.errors import DataError, ExpertiseError, first_line
from expertise.policy.data.checks import checked, refuse_misspelt, rows_of
from expertise.policy.data.transitions import Transitions

_ENDING = ".npy"
_OPTIONAL = ("timeouts", "costs")


def read_npz(path: str) -> Transitions:
    """Data in an .npz file.

    Args:
        path: the file; see `from_arrays` for what it holds.

    Raises:
        DataError: the file is missing, damaged or holds Python objects, an array is missing or not as it
            should be.
    """
    if not Path(path).is_file():
        raise DataError(f"no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(_ENDING)]
            arrays = {name.removesuffix(_ENDING): _read(archive, name, path) for name in names}
    except ExpertiseError:
        raise
    except Exception as error:  # BadZipFile, zlib.error, NotImplementedError, …: by what is damaged
        raise DataError(f"{path} is cut short, or no .npz file: {first_line(error)}") from None
    return from_arrays(arrays, path)


def from_arrays(arrays: Mapping[str, Any], where: str = "the arrays") -> Transitions:
    """Transitions of a dictionary of arrays.

    Args:
        arrays: `observations` [N, O], `actions` [N, A], `rewards` [N], `next_observations` [N, O],
            `terminals` [N]; `timeouts` (where absent: no row) and `costs` may be left out.
        where: what they are called in messages.

    Raises:
        DataError: one is missing or not as it should be.
    """
    for name in _OPTIONAL:
        refuse_misspelt(arrays, name, where)
    rows = rows_of(arrays.get("observations", ()), "observations", where)
    return checked({"timeouts": np.zeros(rows, bool), **arrays}, where)


def _read(archive: zipfile.ZipFile, name: str, path: str) -> Any:
    with archive.open(name) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # ValueError, TokenError, zlib.error, …: by what is damaged
            key = name.removesuffix(_ENDING)
            if isinstance(error, ValueError) and "Object arrays" in str(error):
                raise DataError(f"{path}: {key!r} holds Python objects, which are never read") from None
            raise DataError(f"{path}: {key!r} is damaged: {first_line(error)}") from None
