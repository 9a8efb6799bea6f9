"""Notes that are saved with a composed language model: the text of its router, and how it was read."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from annotated_types import Ge

from expertise.lm.data import DataConfig
from expertise.runs import recipe as recipes
from expertise.skills.composed_json import Composed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notes:
    """Notes of a composed language model; they may be empty if it was composed in Python."""

    data: DataConfig | None = None
    """The text that its router was learnt from; None: there is none."""
    reads_documents: bool | None = None
    """True if that text was read document by document; None: as the base reads."""
    context: Annotated[int, Ge(0)] = 0
    """Tokens per window of that text; 0: as the base's context allows."""
    bfloat16: bool = False
    """True if products were computed in bfloat16."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `save_composed`."""
        return dataclasses.asdict(self)


def notes_of(composed: Composed) -> Notes:
    """Return the notes of a composed language model.

    Raises:
        RecipeError: the saved notes have another form.
    """
    return recipes.build(composed.notes, Notes)
