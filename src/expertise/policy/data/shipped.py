"""Recorded data that come with the package, so that there is something to learn from at once."""

from __future__ import annotations

from pathlib import Path

from expertise.errors import DataError, nearest

PREFIX = "shipped:"
"""What a path of such data begins with: `shipped:BallRun`."""

_FOLDER = Path(__file__).parents[1] / "demo_data"


def names() -> list[str]:
    """What there is."""
    return sorted(path.stem for path in _FOLDER.glob("*.hdf5"))


def located(path: str) -> str:
    """The file that a path means; any but `shipped:…` means itself.

    Raises:
        DataError: no data of that name are shipped.
    """
    if not path.startswith(PREFIX):
        return str(Path(path).expanduser())
    name = path.removeprefix(PREFIX)
    if name not in names():
        raise DataError(f"no shipped data {name!r}", nearest(name, names()))
    return str(_FOLDER / f"{name}.hdf5")
