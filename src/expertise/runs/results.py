"""Measured figures as tidy rows in one JSON file; a row that exists is not measured again."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from expertise import __version__
from expertise.errors import RunError
from expertise.runs.files import disk_errors, make_folder, write_atomic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. All fields except the value and its unit identify it."""

    table: str
    """The table that the row belongs to."""
    setting: str
    """The condition that varies beside the row: a target, a size."""
    row: str
    """The method or model that was measured."""
    metric: str
    """Name of the metric."""
    unit: str
    """Unit of the value."""
    seed: int
    """Seed of the run."""
    value: float
    """The measured value, a mean over tokens or episodes but never over seeds."""

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """The fields that identify a row within a file."""
        return (self.table, self.setting, self.row, self.metric, self.seed)


class Results:
    """Rows on disk. Each `add` rewrites the file atomically, including rows that other processes added.

    Args:
        path: the file; the first `add` makes it.
        settings: further settings that the rows depend on; a file with others is refused, so that no
            table mixes two experiments.
        scope: name of the experiment that the settings belong to, if several share the file.

    Raises:
        RunError: the file is damaged, or was measured with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, scope: str = "") -> None:
        self.path = path
        plain: dict[str, Any] = json.loads(json.dumps(settings or {}))
        self._settings, self._scope = plain, scope
        self._rows: dict[tuple[str, str, str, str, int], Row] = {}
        self.environment: dict[str, Any] = {}
        if path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text("utf-8"))
            rows = [Row(**values) for values in found["rows"]]
            self.environment = dict(found["environment"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.path} holds no results: {error}", "move it away to begin again") from None
        self._rows = {row.key: row for row in rows}
        if len(self._rows) != len(rows):
            raise RunError(f"{self.path} holds a row twice", "move it away to begin again")
        before = self.environment.get("settings", {})
        if self._scope:
            before = before.get(self._scope, self._settings)
        if self._settings and rows and before != self._settings:
            keys = sorted(k for k in {*before, *self._settings} if before.get(k) != self._settings.get(k))
            raise RunError(
                f"{self.path} was measured with other settings: {', '.join(keys)}",
                "move it away to measure anew",
            )

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order in which they were added."""
        return list(self._rows.values())

    def select(self, table: str, metric: str, setting: str | None = None) -> list[Row]:
        """The rows of a table with this metric, of one setting or of all."""
        return [
            row
            for row in self._rows.values()
            if row.table == table and row.metric == metric and setting in (None, row.setting)
        ]

    def has(self, table: str, setting: str, row: str, metric: str, seed: int) -> bool:
        """True if the file holds this measurement."""
        return (table, setting, row, metric, seed) in self._rows

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows; a row with a known key replaces the old one.

        Raises:
            DiskError: the file cannot be written; the old one stays.
        """
        with disk_errors(self.path):
            make_folder(self.path.parent)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            if self.path.is_file():
                self._read()
            self._rows |= {row.key: row for row in rows}
            settings = self._settings
            if self._scope:
                settings = {**self.environment.get("settings", {}), self._scope: settings}
            self.environment = environment() | ({"settings": settings} if settings else {})
            content = {
                "environment": self.environment,
                "rows": [dataclasses.asdict(row) for row in self._rows.values()],
            }
            write_atomic(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def environment() -> dict[str, Any]:
    """Versions, machine, commit and date of a measurement."""
    found: dict[str, Any] = {
        "expertise": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    for name in ("torch", "transformers", "peft"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit that this source was checked out from; None outside of a repository."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own arguments
        ["git", "-C", str(folder), *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()
