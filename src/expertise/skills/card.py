"""A skill's metadata, `card.json`, and the check of its other files against it.

No torch here: a library is listed without it.

`SCHEMA` numbers the layout of the card; it is raised by whoever changes it so that code from before would
read it wrongly. What never changes: a JSON object with `schema`, `version` and, last, the SHA-256 of the
rest, so that every version can tell another one's card from a damaged one.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expertise import __version__
from expertise.errors import SkillError
from expertise.runs.files import sha256_of_json
from expertise.skills.peft_config import CONFIG, WEIGHTS

CARD = "card.json"
SCHEMA = 1

CONVENTIONS = ("alpha/r", "alpha/sqrt(r)", "raw")
"""Conventions for a scaling: LoRA's (arXiv 2106.09685), rank-stabilised (arXiv 2312.03732), a plain
multiplier (PSEC, arXiv 2502.05932). `skill.Factors.scaling` is always the multiplier itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Identifies a base by its structure and its weights."""

    structure: str
    """SHA-256 over names, dtypes and shapes of the parameters."""
    weights: str
    """SHA-256 over the bits of the parameters."""
    num_params: int
    """Number of parameters, for display."""

    def difference(self, other: Fingerprint) -> str | None:
        """The difference to another base in words; None if they are the same."""
        if self == other:
            return None
        if self.structure == other.structure:
            return "the same shapes with other weights"
        if self.num_params != other.num_params:
            return f"{other.num_params:,} parameters, not {self.num_params:,}"
        return "other names, shapes or dtypes of its parameters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """Metadata of a skill; `card.json` in its folder."""

    name: str
    """Name of the skill, which is also its folder's name."""
    purpose: str = ""
    """Purpose of the skill, in a sentence."""
    base: Fingerprint | None = None
    """Fingerprint of the base that it was learnt on; None: unknown, so only shapes can be compared."""
    data: str | None = None
    """Description of the training data."""
    data_digest: str | None = None
    """SHA-256 of the training data."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Figures that the skill's maker recorded."""
    date: str = ""
    """Time at which the card was written, as ISO 8601 in UTC."""
    parents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Skills that it was made from → SHA-256 of their weights at that time."""
    scale_convention: str = "raw"
    """Convention that its scaling was computed by, one of `CONVENTIONS`."""
    targets: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Address of each adapted weight → rank."""
    files: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Every other file of the folder → its `size` in bytes and `sha256`."""

    def __post_init__(self) -> None:
        if self.scale_convention not in CONVENTIONS:
            raise SkillError(
                f"unknown convention of scale {self.scale_convention!r}",
                f"known are: {', '.join(CONVENTIONS)}",
            )

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks of its factors, ascending."""
        return tuple(sorted(set(self.targets.values())))


def now() -> str:
    """The current time as cards store it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """A card's entries for files: their size and SHA-256."""
    return {name: {"size": len(data), "sha256": _sha256(data)} for name, data in sorted(files.items())}


def card_text(card: Card) -> str:
    """The content of `card.json`.

    Raises:
        SkillError: the metrics hold something that JSON cannot.
    """
    content = {"schema": SCHEMA, "version": __version__, **dataclasses.asdict(card)}
    try:
        # Through JSON first, which turns keys that are numbers into text: the digest must match what is read.
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SkillError(f"the card of {card.name} cannot be written as JSON: {error}") from None
    return json.dumps({**content, "sha256": sha256_of_json(content)}, indent=1, ensure_ascii=False) + "\n"


def read_card(folder: Path) -> Card | None:
    """Read the card of a skill's folder; None if it has none.

    Raises:
        SkillError: it is damaged, or another version wrote it.
    """
    try:
        content = json.loads((folder / CARD).read_text("utf-8"))
        digest = content.pop("sha256")
        if digest != sha256_of_json(content):
            raise ValueError
        schema, version = content.pop("schema"), content.pop("version")
        if schema == SCHEMA:
            return _card(**content)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise damaged(folder, CARD, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SkillError):
        raise damaged(folder, CARD, "is not what was written") from None
    raise SkillError(
        f"{folder / CARD} has schema {schema}, this version reads {SCHEMA}",
        f"it was written by expertise {version}: use that",
    )


def _card(*, base: Mapping[str, Any] | None, **content: Any) -> Card:
    """Build a card from JSON; the values are checked, because a matching digest does not make them valid.

    Raises:
        TypeError, ValueError, AttributeError, SkillError: it is none.
    """
    card = Card(base=None if base is None else Fingerprint(**base), **content)
    for name, entry in card.files.items():
        if Path(name).name != name or name in (CARD, "..") or set(entry) != {"size", "sha256"}:
            raise ValueError(f"{name} is no file of this folder")
    for value in (card.name, card.purpose, card.date, card.data or "", card.data_digest or ""):
        value.encode()
    for table in (card.metrics, card.parents, card.targets):
        table.items()
    for rank in card.targets.values():
        operator.index(rank)
    return card


def read_whole(folder: Path, name: str, card: Card | None) -> bytes:
    """Read a file of a skill, checked against the card if there is one.

    What is checked is what is returned: nothing reads the file a second time.

    Raises:
        SkillError: it is missing, unreadable or not what was written; the file is named.
    """
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise damaged(folder, name, "is missing") from None
    except OSError as error:
        raise damaged(folder, name, f"cannot be read: {error.strerror}") from error
    if card is not None:
        entry = card.files.get(name)
        if entry is None:
            raise damaged(folder, name, f"is not in {CARD}")
        if len(data) != entry.get("size") or _sha256(data) != entry.get("sha256"):
            raise damaged(folder, name, "is not what was written")
    return data


def read_files(folder: Path, card: Card | None) -> dict[str, bytes]:
    """Read every file of a skill except its card, each checked against the card if there is one.

    Without a card: the adapter's two files, and `README.md` where there is one.

    Raises:
        SkillError: one is missing, unreadable or not what was written; or the weights are no safetensors.
    """
    if card is None and not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise SkillError(
            f"{folder} keeps its weights as a pickle, which may run anything when it is read",
            "save it again with PEFT: save_pretrained(…, safe_serialization=True)",
        )
    readme = ("README.md",) if (folder / "README.md").is_file() else ()
    names = (CONFIG, WEIGHTS, *readme) if card is None else (CONFIG, WEIGHTS, *card.files)
    return {name: read_whole(folder, name, card) for name in dict.fromkeys(names)}


def changed(card: Card, **fields: Any) -> Card:
    """Copy a card with the given fields replaced; None leaves a field as it is."""
    return dataclasses.replace(card, **{key: value for key, value in fields.items() if value is not None})


def damaged(folder: Path, name: str, how: str) -> SkillError:
    """The error that names a damaged file."""
    return SkillError(f"damaged skill {folder}: {name} {how}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
