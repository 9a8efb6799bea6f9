"""What is known of a skill beside its weights: `card.json`, and the other files held against it.

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
"""How a scaling came about: LoRA's (arXiv 2106.09685), rank-stabilised (arXiv 2312.03732), a plain multiplier
(PSEC, arXiv 2502.05932). `skill.Factors.scaling` is always the multiplier itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What tells one base from another."""

    structure: str
    """SHA-256 over names, dtypes and shapes of the parameters."""
    weights: str
    """SHA-256 over their bits."""
    num_params: int
    """How many numbers they hold, for a reader."""

    def difference(self, other: Fingerprint) -> str | None:
        """In words, how another base differs; None when it is the same."""
        if self == other:
            return None
        if self.structure == other.structure:
            return "the same shapes with other weights"
        if self.num_params != other.num_params:
            return f"{other.num_params:,} parameters, not {self.num_params:,}"
        return "other names, shapes or dtypes of its parameters"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a skill beside its weights; `card.json` in its folder."""

    name: str
    """The skill's name, which is its folder's."""
    purpose: str = ""
    """What it is for, in a sentence."""
    base: Fingerprint | None = None
    """Of the base that it was learnt on; None: unknown, so only shapes can be compared."""
    data: str | None = None
    """What it was learnt from."""
    data_digest: str | None = None
    """SHA-256 of that data."""
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Figures of whoever made it."""
    date: str = ""
    """When the card was written, as ISO 8601 in UTC."""
    parents: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Skills that it was made from → SHA-256 of their weights then."""
    scale_convention: str = "raw"
    """How its scaling came about, one of `CONVENTIONS`."""
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
        """The ranks that occur, ascending."""
        return tuple(sorted(set(self.targets.values())))


def now() -> str:
    """The date that a card bears."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """What a card says of files: their size and SHA-256."""
    return {name: {"size": len(data), "sha256": _sha256(data)} for name, data in sorted(files.items())}


def card_text(card: Card) -> str:
    """The content of `card.json`.

    Raises:
        SkillError: the metrics hold something that JSON cannot.
    """
    content = {"schema": SCHEMA, "version": __version__, **dataclasses.asdict(card)}
    try:
        # Read back first: numbers as keys become text, and the digest must be that of what a reader finds.
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SkillError(f"the card of {card.name} cannot be written as JSON: {error}") from None
    return json.dumps({**content, "sha256": sha256_of_json(content)}, indent=1, ensure_ascii=False) + "\n"


def read_card(folder: Path) -> Card | None:
    """The card of a skill's folder, or None when it has none.

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
    """A card from its JSON; whoever made it may have made up its digest, too.

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
    """A file of a skill, held against the card where there is one.

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
    """Every file that belongs to a skill but its card, each held against the card where there is one.

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
    """A card with the fields that are given, None meaning not."""
    return dataclasses.replace(card, **{key: value for key, value in fields.items() if value is not None})


def damaged(folder: Path, name: str, how: str) -> SkillError:
    """The error that names a damaged file."""
    return SkillError(f"damaged skill {folder}: {name} {how}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
