"""Pointers of Git LFS, which stand where a file should be that was never fetched."""

from __future__ import annotations

from pathlib import Path

from expertise.errors import DataError
from expertise.runs.files import escaped

_MARK = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: str | Path) -> None:
    """Refuse a file that is a Git LFS pointer; the path must be that of a file.

    Raises:
        DataError: it is one.
    """
    with Path(path).open("rb") as file:
        if file.read(len(_MARK)) == _MARK:
            raise DataError(
                f"{escaped(str(path))} is a Git LFS pointer: the file itself was not fetched",
                "run `git lfs pull` in its repository, or download the file",
            )
