"""Compare a composed model with its base, its skills alone, and their uniform mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expertise.lm.causal import CausalLM
from expertise.lm.evaluate import DomainText, Evaluation, evaluate
from expertise.skills.composition import composition_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Evaluations of a composed model, its base, each skill alone and their uniform mean on the same text."""

    base: Evaluation
    """The base without any skill."""
    skills: dict[str, Evaluation]
    """Each skill alone, with weight 1."""
    uniform: Evaluation
    """All skills, each with weight 1 / K."""
    composed: Evaluation
    """The composed model with its own weights."""

    def rows(self) -> dict[str, Evaluation]:
        """Return the evaluations by title, for a table."""
        skills = {f"skill {name}": found for name, found in self.skills.items()}
        return {"base": self.base, **skills, "uniform": self.uniform, "composed": self.composed}

    def better_alone(self) -> dict[str, Any] | None:
        """Return the best of the skills alone and the base, if it beats the composed model.

        Mean bits per byte are compared at four digits, as a table shows them; a tie beats nothing.

        Returns:
            `name` (of a skill, or "base"), its `bits_per_byte` and those of `composed`; None: none is better.
        """
        composed = self.composed.mean_bits_per_byte
        alone = {"base": self.base, **self.skills}.items()
        bits = {n: round(b, 4) for n, found in alone if (b := found.mean_bits_per_byte) is not None}
        if composed is None or not bits:
            return None
        best, own = min(bits, key=bits.__getitem__), round(composed, 4)
        return {"name": best, "bits_per_byte": bits[best], "composed": own} if bits[best] < own else None

    def to_json(self) -> dict[str, Any]:
        """Return bits per byte by domain and mean: `base`, `skills` (by name), `uniform`, `composed`."""
        return {
            "base": self.base.rounded_bits(),
            "skills": {name: found.rounded_bits() for name, found in self.skills.items()},
            "uniform": self.uniform.rounded_bits(),
            "composed": self.composed.rounded_bits(),
        }


def comparison(
    model: CausalLM, texts: list[DomainText], batch_size: int, bfloat16: bool = False
) -> SideBySide:
    """Evaluate a composed model, its base, each skill alone and their uniform mean on the same text.

    Args:
        model: around a composed model.
        texts: held-out windows, from `domain_texts`.
        batch_size: windows at once.
        bfloat16: compute products in bfloat16.
    """
    names = composition_of(model.core).names

    def row(weights: Sequence[float] | Mapping[str, float]) -> Evaluation:
        return evaluate_weights(model, texts, batch_size, weights, bfloat16)

    return SideBySide(
        base=row({}),
        skills={name: row({name: 1.0}) for name in names},
        uniform=row([1 / len(names)] * len(names)),
        composed=evaluate(model, texts, batch_size, bfloat16),
    )


def evaluate_weights(
    model: CausalLM,
    texts: list[DomainText],
    batch_size: int,
    weights: Sequence[float] | Mapping[str, float],
    bfloat16: bool = False,
) -> Evaluation:
    """Evaluate a composed model with constant weights in place of its own; a missing name counts as 0."""
    with composition_of(model.core).using(weights=weights):
        return evaluate(model, texts, batch_size, bfloat16)
