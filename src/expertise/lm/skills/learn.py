"""Learning a skill of a language model, and a router over skills."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expertise.lm.causal import CausalLM
from expertise.lm.evaluate import DomainText, Evaluation
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.skills.skill import Skill


def _silent(_line: str) -> None:
    """Print nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearntSkill:
    """What learning a skill gave."""

    skill: Skill
    """Its factors, on the CPU; no card yet."""
    model: CausalLM
    """The base with the skill (and those that it was learnt beside), as it was trained."""
    metrics: dict[str, Any]
    """`bits_per_byte`: `before` and `after`, each domain → value with `mean`; `steps`, `tokens`."""
    data: str
    """The sources, in words."""
    data_digest: str
    """SHA-256 of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearntRouter:
    """What learning a router over skills gave."""

    model: CausalLM
    """The composed model; `save_composed(model.core, …)` keeps it."""
    metrics: dict[str, Any]
    """`bits_per_byte`: row → domain → value with `mean`; rows `base`, each skill, `uniform`, `composed`."""
    data: str
    """The sources, in words."""
    data_digest: str
    """SHA-256 of them."""


def learn_skill(
    base: CausalLM,
    name: str,
    config: LearnConfig,
    work: Path,
    *,
    beside: Sequence[Skill] = (),
    weights: Sequence[float] | Mapping[str, float] | None = None,
    say: Callable[[str], None] = _silent,
) -> LearntSkill:
    """Learn a skill on a frozen base; only its factors are trained.

    Args:
        base: any language model; it is not changed.
        name: what the skill is called.
        config: data, factors, training.
        work: a run's folder; one that was stopped goes on, a finished one gives its result again.
        beside: skills that stay as they are and are at work while it learns ("expansion").
        weights: theirs; None: 0.
        say: told what happens, a line at a time.
    """
    raise NotImplementedError


def learn_router(
    base: CausalLM,
    skills: Sequence[Skill],
    config: ComposeConfig,
    work: Path,
    *,
    say: Callable[[str], None] = _silent,
) -> LearntRouter:
    """Learn who has which weight when; nothing but the router is trained.

    Args:
        base: any language model; it is not changed.
        skills: at least one.
        config: data, router, training.
        work: a run's folder; one that was stopped goes on, a finished one gives its result again.
        say: told what happens, a line at a time.
    """
    raise NotImplementedError


def comparison(
    model: CausalLM, texts: list[DomainText], batch_size: int, bfloat16: bool = False
) -> dict[str, Evaluation]:
    """A composed model beside what it is made of, on the same text.

    Args:
        model: around a composed model.
        texts: held-out windows, from `domain_texts`.
        batch_size: windows at once.
        bfloat16: compute products in bfloat16.

    Returns:
        Row → evaluation: `base`, each skill alone with weight 1, `uniform` (all with 1 / K), `composed`.
    """
    raise NotImplementedError


def evaluate_weights(
    model: CausalLM,
    texts: list[DomainText],
    batch_size: int,
    weights: Sequence[float] | Mapping[str, float],
    bfloat16: bool = False,
) -> Evaluation:
    """A composed model with these constant weights in place of its own."""
    raise NotImplementedError
