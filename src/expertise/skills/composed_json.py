"""`composed.json`: the description of a composed model, and the check of its files against it.

What never changes about it: a JSON object with `schema`, `version` and, last, the SHA-256 of the rest, so
that every version can tell another one's from a damaged one.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from expertise import __version__
from expertise.errors import SkillError
from expertise.mixture.routers import ROUTERS
from expertise.mixture.routers.configs import RouterConfig
from expertise.runs import recipe as recipes
from expertise.runs.files import sha256_of, sha256_of_json
from expertise.runs.recipe import Choice
from expertise.skills.card import Fingerprint

Reads = Literal["context", "token", "pooled", "layer"]
"""Input of a router. "context": a vector that the caller gives, one per row. "token": the hidden state of
each token. "pooled": the mean of a row's hidden states up to and including each token, so that no token sees
those after it. These three make one choice for all layers. "layer": each adapted layer has its own router,
which reads that layer's input, token by token."""

COMPOSED = "composed.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseReference:
    """Path and fingerprint of a composed model's base."""

    kind: str = ""
    """One of `BASES`; empty: the base was never on disk, and must be given."""
    path: str = ""
    """Absolute path of the base, or its id on the hub."""
    relative: str = ""
    """Path of the base relative to the composed model's folder, in case both are moved together."""
    fingerprint: Fingerprint
    """Fingerprint of the base's weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed:
    """Content of `composed.json`."""

    base: BaseReference
    """The base that the skills are added to."""
    skills: list[str]
    """Names of the skills, in the order of alpha."""
    weights: list[float] | None = None
    """Constant alpha; None: a router decides."""
    router: Annotated[RouterConfig, Choice(ROUTERS)] | None = None
    """Configuration of the router, if there is one."""
    reads: Reads = "context"
    """Input of the router."""
    source: str | None = None
    """Name of the module whose output the router reads; None: the input embedding."""
    data: str = ""
    """Description of the data that the router was trained on."""
    data_digest: str = ""
    """SHA-256 of that data."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Figures that its maker recorded."""
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further values that its maker recorded."""
    date: str = ""
    """Time at which it was written, as ISO 8601 in UTC."""
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Every other file → its `size` in bytes and `sha256`."""


def is_composed(path: Path) -> bool:
    """True if a folder holds a composed model."""
    return (path / COMPOSED).is_file()


def read_composed(path: Path | str) -> Composed:
    """Read `composed.json` of a composed model; no other file is opened.

    Raises:
        SkillError: there is none, it is damaged, or another version wrote it.
    """
    file = Path(path) / COMPOSED
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.pop("sha256") != sha256_of_json(content):
            raise ValueError
        schema, version = content.pop("schema"), content.pop("version")
    except (FileNotFoundError, NotADirectoryError):
        raise SkillError(f"no composed model at {path}: it has no {COMPOSED}") from None
    except OSError as error:
        raise SkillError(f"damaged composed model {path}: {COMPOSED}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SkillError(f"damaged composed model {path}: {COMPOSED} is not what was written") from None
    if schema != SCHEMA:
        raise SkillError(
            f"{file} has schema {schema}, this version reads {SCHEMA}",
            f"it was written by expertise {version}: use that",
        )
    return recipes.build(content, Composed)


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of `composed.json` for the files beside it: path in the folder → size and SHA-256."""
    return {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def composed_text(composed: Composed) -> str:
    """The content of `composed.json`.

    Raises:
        SkillError: metrics or notes hold something that JSON cannot.
    """
    content = {"schema": SCHEMA, "version": __version__, **dataclasses.asdict(composed)}
    try:
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SkillError(f"{COMPOSED} cannot be written as JSON: {error}") from None
    return json.dumps({**content, "sha256": sha256_of_json(content)}, indent=1, ensure_ascii=False) + "\n"


def require_whole(folder: Path, composed: Composed) -> None:
    """Refuse a folder in which a file is missing or changed.

    Raises:
        SkillError: all of them are named.
    """
    bad = []
    for name, entry in composed.files.items():
        file = folder / name
        try:
            if not file.is_file():
                bad.append(f"{name} is missing")
            elif file.stat().st_size != entry["size"] or sha256_of(file) != entry["sha256"]:
                bad.append(f"{name} is not what was written")
        except OSError as error:
            bad.append(f"{name} cannot be read: {error.strerror}")
    if bad:
        raise SkillError(f"damaged composed model {folder}: {'; '.join(bad)}")
