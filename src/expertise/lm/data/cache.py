"""Built text and tokens on disk: safe to delete, built once, never seen half-written."""

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
"""Part of every key: raised when what is stored, or how it is built, changes."""

_MANIFEST = "manifest.json"
_HASHED_ON_OPENING = 32 * 2**20


@dataclass(frozen=True)
class Entry:
    """A folder of the cache that is whole: every file has the size its manifest says."""

    path: Path
    """The folder."""

    facts: dict[str, Any]
    """What the builder said about it, as read from the manifest."""


def cache_root() -> Path:
    """`$EXPERTISE_CACHE`, else `$XDG_CACHE_HOME/expertise`, else `~/.cache/expertise`."""
    own = os.environ.get("EXPERTISE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "expertise"


def key_of(*parts: object) -> str:
    """A name for what was built from `parts` (anything JSON holds), with the format's version."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


def entry(kind: str, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """The entry of this kind and key: as it is, or built now if it is missing or damaged.

    Several processes may ask at once: one builds, under a lock, and the others wait for it.

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
        except FileNotFoundError:  # the cache was deleted under our feet: once more
            return _build(folder, key, build)
    except (OSError, DiskError) as error:  # sources turn their own into DataError: this one is the cache's
        cause = error.__cause__ if isinstance(error, DiskError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
        raise DiskError(
            f"cannot write the cache {cache_root()}: {reason}",
            "free some space there, or set EXPERTISE_CACHE to a folder that can be written",
        ) from cause


def _build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    import filelock  # not needed where everything is built

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
    """The entry, unless it is missing or damaged; contents are only compared where that is quick."""
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
