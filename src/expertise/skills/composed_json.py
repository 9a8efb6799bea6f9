"""`composed.json`: what the folder of a composed model says of itself, and its files held against that.

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
"""What a router sees. "context": a vector that the caller gives, one per row. "token": the hidden state of
each token. "pooled": the mean of a row's hidden states up to and including each token, so that no token sees
those after it. These three make one choice for all layers. "layer": each adapted layer has its own router,
which sees that layer's input, token by token."""

COMPOSED = "composed.json"
SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseReference:
    """Where a composed model's base is, and which one it must be."""

    kind: str = ""
    """One of `BASES`; empty: it was never on disk, and must be given."""
    path: str = ""
    """Where it was, absolute, or its id on the hub."""
    relative: str = ""
    """The same from the composed model's folder, for when both were moved together."""
    fingerprint: Fingerprint
    """Of its weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed:
    """What `composed.json` says."""

    base: BaseReference
    """What the skills stand on."""
    skills: list[str]
    """Their names, in the order of alpha."""
    weights: list[float] | None = None
    """Constant alpha; None: a router decides."""
    router: Annotated[RouterConfig, Choice(ROUTERS)] | None = None
    """Who decides."""
    reads: Reads = "context"
    """What the router sees."""
    source: str | None = None
    """The module whose output it sees; None: the input embedding."""
    data: str = ""
    """What the router was learnt from."""
    data_digest: str = ""
    """SHA-256 of that."""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Figures of whoever made it."""
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else its maker wants to find again."""
    date: str = ""
    """When it was written, as ISO 8601 in UTC."""
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Every other file → its `size` in bytes and `sha256`."""


def is_composed(path: Path) -> bool:
    """Whether a folder holds a composed model."""
    return (path / COMPOSED).is_file()


def read_composed(path: Path | str) -> Composed:
    """What a composed model's folder says of itself; no other file is opened.

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
    """What `composed.json` says of the files beside it: path in the folder → size and SHA-256."""
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
