"""Cache of text and tokens on disk: safe to delete, built once, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expertise.errors import DiskError
from expertise.runs.files import atomic_folder, sha256_of

FORMAT = 1
"""Part of every key: raised when the stored data, or the way to build them, changes."""

_MANIFEST = "manifest.json"
_HASHED_ON_OPENING = 32 * 2**20


@dataclass(frozen=True)
class Entry:
    """An intact folder of the cache: every file has the size in its manifest."""

    path: Path
    """Path of the folder."""

    facts: dict[str, Any]
    """Facts that the builder returned, as read from the manifest."""


def cache_root() -> Path:
    """Return `$EXPERTISE_CACHE`, else `$XDG_CACHE_HOME/expertise`, else `~/.cache/expertise`."""
    own = os.environ.get("EXPERTISE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "expertise"


def key_of(*parts: object) -> str:
    """Return a key for data built from `parts` (anything JSON holds) and from the format's version."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


def entry(kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """Return the entry of this kind and key; it is built if it is missing or damaged.

    If several processes ask at once, one builds, under a lock, and the others wait for it.

    Args:
        kind: the sub-folder, `text` or `tokens`.
        key: from `key_of`.
        build: writes files into the empty folder it is given and returns facts for the manifest.

    Raises:
        DiskError: the cache is full or cannot be written.
    """
    folder = cache_root() / kind
    found = _opened(folder / key)
    if found is not None:
        return found
    try:
        try:
            return _build(folder, key, build)
        except FileNotFoundError:  # the cache was deleted meanwhile: once more
            return _build(folder, key, build)
    except (OSError, DiskError) as error:  # sources raise DataError: this error is the cache's
        cause = error.__cause__ if isinstance(error, DiskError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
        raise DiskError(
            f"cannot write the cache {cache_root()}: {reason}",
            "free some space there, or set EXPERTISE_CACHE to a folder that can be written",
        ) from cause


def _build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    import filelock  # not needed if everything is built

    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f".{key}.lock"):
        found = _opened(folder / key)
        if found is not None:
            return found
        for left_over in folder.glob(f".{key}.*.part"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        with atomic_folder(folder / key) as partial:
            facts = build(partial)
            files = {
                path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
                for path in sorted(partial.iterdir())
            }
            manifest = {"format": FORMAT, "facts": facts, "files": files}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return Entry(folder / key, facts)


def _opened(path: Path) -> Entry | None:
    """Open the entry, unless it is missing or damaged; contents are only compared where that is quick."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return None
            if size <= _HASHED_ON_OPENING and sha256_of(path / name) != expected["sha256"]:
                return None
        return Entry(path, manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
