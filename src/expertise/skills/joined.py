"""Low-rank factors of skills as parts of a mixture, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from expertise.mixture.parts.low_rank import LowRankExperts
from expertise.skills.skill import Factors


def join(factors: Sequence[Factors], trainable: bool) -> LowRankExperts:
    """Parts with a copy of the factors of each skill on one weight, or on one stack of weights.

    Args:
        factors: of each skill.
        trainable: whether they learn.
    """
    return LowRankExperts.joined([(f.A, f.B) for f in factors], [f.scaling for f in factors], trainable)


def factors_of(parts: LowRankExperts, embedding: bool = False) -> Iterator[Factors]:
    """The factors of each skill in joined parts; views, so that writing to them shows in the parts."""
    for span, scaling in zip(parts.spans(), parts.scalings, strict=True):
        if parts.num_experts is None:
            down, up = parts.lora_A[span], parts.lora_B[span].t()
        else:
            down, up = parts.lora_A[:, span], parts.lora_B[:, :, span]
        yield Factors(A=down, B=up, scaling=scaling, embedding=embedding)
