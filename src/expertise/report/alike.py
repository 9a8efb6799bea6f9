"""How alike skills are, as the tables of a record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from expertise.skills.compare import Comparison


def similarity_of(found: Comparison, names: Sequence[str], added_to: str) -> dict[str, list[list[float]]]:
    """Measure → K × K values; a measure that some pair does not have is left out.

    Args:
        found: the comparison.
        names: of the skills, in the order of rows and columns.
        added_to: which outputs their agreement was measured on.
    """
    measures: dict[str, dict[tuple[str, str], float | None]] = {
        "Cosine of what they change": {},
        f"Agreement of what they add to {added_to}": {},
        "Overlap of the outputs that they reach": {},
    }
    for pair in found.pairs:
        key = (pair.first, pair.second)
        cosines = [
            math.cos(math.radians(angle)) ** 2 for layer in pair.layers.values() for angle in layer.out_angles
        ]
        values = (pair.cosine, pair.agreement, sum(cosines) / len(cosines) if cosines else None)
        for measure, value in zip(measures.values(), values, strict=True):
            measure[key] = value
    return {
        measure: [[_symmetric(values, one, other) for other in names] for one in names]
        for measure, values in measures.items()
        if len(names) > 1 and None not in values.values()
    }


def _symmetric(values: Mapping[tuple[str, str], float | None], one: str, other: str) -> float:
    value = 1.0 if one == other else values.get((one, other), values.get((other, one)))
    assert value is not None
    return round(value, 4)
