"""What a composed language model notes beside what every composed model says: on what text, read how."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from annotated_types import Ge

from expertise.lm.data import DataConfig
from expertise.runs import recipe as recipes
from expertise.skills.composed_json import Composed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
    """The notes of a composed language model; those of one that was made in Python may be empty."""

    data: DataConfig | None = None
    """The text that its router was learnt from; None: there is no such text."""
    reads_documents: bool | None = None
    """Whether that text was read document by document; None: as the base reads."""
    context: Annotated[int, Ge(0)] = 0
    """Tokens of a window there; 0: as the base's context allows."""
    bfloat16: bool = False
    """Whether products were computed in bfloat16."""

    def to_json(self) -> dict[str, Any]:
        """For `save_composed`."""
        return dataclasses.asdict(self)


def notes_of(composed: Composed) -> Notes:
    """The notes of a composed language model.

    Raises:
        RecipeError: they are no notes of ours.
    """
    return recipes.build(composed.notes, Notes)
