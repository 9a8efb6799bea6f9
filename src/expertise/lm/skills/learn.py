"""Learning a skill of a language model, and a router over skills."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expertise.errors import amount
from expertise.lm.causal import CausalLM
from expertise.lm.data import Prepared
from expertise.lm.notes import Notes
from expertise.lm.reading import prepare_for
from expertise.lm.show import Example
from expertise.lm.skills.compare import SideBySide, comparison, evaluate_weights
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.lm.skills.task import CompositionTask
from expertise.lm.skills.training import check, digests_of, run
from expertise.runs import folder
from expertise.runs.device import limit_threads
from expertise.skills.composing import compose
from expertise.skills.composition import composition_of
from expertise.skills.folders import require_name
from expertise.skills.given import as_numbers
from expertise.skills.learn import fresh, learnt, trainable
from expertise.skills.skill import Skill


def _silent(_line: str) -> None:
    """Ignore a line of progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearntSkill:
    """A learnt skill with its model, metrics and data."""

    skill: Skill
    """The factors, on the CPU; no card yet."""
    model: CausalLM
    """The base with the skill and the skills that it was learnt beside, as trained."""
    metrics: dict[str, Any]
    """`bits_per_byte`: `before` and `after`, each domain → value with `mean`; `steps`, `tokens`."""
    data: str
    """The sources, in words."""
    data_digest: str
    """SHA-256 of the sources."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearntRouter:
    """A learnt router over skills with its composed model, metrics and data."""

    model: CausalLM
    """The composed model; `save_composed(model.core, …)` keeps it."""
    comparison: SideBySide
    """The composed model compared with its parts on held-out text."""
    metrics: dict[str, Any]
    """`bits_per_byte` of the comparison, `skills` (mean alpha by domain), `steps`, `tokens`."""
    data: str
    """The sources, in words."""
    data_digest: str
    """SHA-256 of the sources."""
    notes: Notes
    """Notes for `save_composed`, with which the same text can be read again."""
    prepared: Prepared
    """The encoded text."""


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
        base: any language model, on the device to train on; it is not changed.
        name: the skill's name.
        config: data, factors and training.
        work: a run's folder; a stopped training is resumed, a finished one returns its result again.
        beside: frozen skills that are active while it learns ("expansion").
        weights: weights of those skills; None: 1 each.
        say: called with each line of progress.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
        Stopped: a signal asked for it; everything is saved.
    """
    task, alpha, facts = _ready(base, name, config, work, beside, weights, say)
    model, prepared = task.composed, task.prepared
    after = run(base, task, work, facts, say)
    before = evaluate_weights(
        model, task.texts(), config.evaluation.batch_size, [*alpha[:-1], 0.0], config.train.bfloat16
    )
    bits = {"before": before.rounded_bits(), "after": after["bits_per_byte"]}
    others = {skill.name: a for skill, a in zip(beside, alpha[:-1], strict=True)}
    return LearntSkill(
        skill=learnt(model.core, name),
        model=model,
        metrics={"bits_per_byte": bits, **_effort(task), **({"beside": others} if beside else {})},
        data=_sources(prepared, config),
        data_digest=prepared.digest,
    )


def check_skill(
    base: CausalLM,
    name: str,
    config: LearnConfig,
    work: Path,
    *,
    beside: Sequence[Skill] = (),
    weights: Sequence[float] | Mapping[str, float] | None = None,
    say: Callable[[str], None] = _silent,
    show: int = 0,
) -> list[Example]:
    """Do everything that `learn_skill` does before it writes to its folder.

    Args:
        base, name, config, work, beside, weights, say: as in `learn_skill`.
        show: number of examples to return.

    Returns:
        The first rows of the training data.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
    """
    task, _, facts = _ready(base, name, config, work, beside, weights, say)
    check(base, task, work, facts, say)
    say("the data and the settings are valid")
    return task.examples(show)


def _ready(
    base: CausalLM,
    name: str,
    config: LearnConfig,
    work: Path,
    beside: Sequence[Skill],
    weights: Sequence[float] | Mapping[str, float] | None,
    say: Callable[[str], None],
) -> tuple[CompositionTask, list[float], dict[str, Any]]:
    """Return the task, the weights of all skills in it, and the facts that the training is begun with."""
    require_name(name)
    folder.refuse_if_held(work)
    limit_threads(config.train.threads)
    prepared = prepare_for(base, config.data, say)
    growing = fresh(base.core, name, config.skill, config.train.seed)
    given = [1.0] * len(beside) if weights is None else weights
    model = base.around(compose(base.core, list(beside), weights=given, growing=growing))
    task = CompositionTask(model, config, prepared)
    num_learnt = sum(parameter.numel() for parameter in trainable(model.core))
    say(f"{num_learnt:,} parameters on {len(growing.factors)} weights; {_amount(prepared)}")
    alpha = as_numbers(composition_of(model.core).default_weights())
    return task, alpha, {"skill": name, "beside": digests_of(beside), "weights": alpha}


def learn_router(
    base: CausalLM,
    skills: Sequence[Skill],
    config: ComposeConfig,
    work: Path,
    *,
    say: Callable[[str], None] = _silent,
) -> LearntRouter:
    """Learn a router that weighs the skills; only the router is trained.

    Args:
        base: any language model, on the device to train on; it is not changed.
        skills: at least one.
        config: data, router and training.
        work: a run's folder; a stopped training is resumed, a finished one returns its result again.
        say: called with each line of progress.

    Raises:
        ExpertiseError: any mistake of the user; see `expertise.errors`.
        Stopped: a signal asked for it; everything is saved.
    """
    folder.refuse_if_held(work)
    limit_threads(config.train.threads)
    prepared = prepare_for(base, config.data, say)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        core = compose(
            base.core,
            list(skills),
            router=config.router,
            reads=config.reads,
            source=config.source or None,
        )
    model = base.around(core)
    task = CompositionTask(model, config, prepared)
    num_learnt = sum(parameter.numel() for parameter in trainable(core))
    say(f"{num_learnt:,} parameters of the router over {len(skills)} skills; {_amount(prepared)}")
    run(base, task, work, {"skills": digests_of(skills)}, say)
    found = comparison(model, task.texts(), config.evaluation.batch_size, config.train.bfloat16)
    return LearntRouter(
        model=model,
        comparison=found,
        metrics={
            "bits_per_byte": found.to_json(),
            "skills": found.composed.to_json()["skills"],
            **_effort(task),
        },
        data=_sources(prepared, config),
        data_digest=prepared.digest,
        notes=Notes(
            data=config.data,
            reads_documents=prepared.packed,
            context=task.window,
            bfloat16=config.train.bfloat16,
        ),
        prepared=prepared,
    )


def _sources(prepared: Prepared, config: LearnConfig | ComposeConfig) -> str:
    """Describe the sources of a training in words."""
    return f"{config.data.places()}: {', '.join(prepared.domains_of('train'))}"


def _effort(task: CompositionTask) -> dict[str, int]:
    steps = task.config.train.steps
    return {"steps": steps, "tokens": steps * task.units_per_step}


def _amount(prepared: Prepared) -> str:
    """Describe the amounts of training text and of held-out text."""
    tokens = sum(prepared.tokens_count["train"].values())
    held_out = sum(prepared.bytes["validation"].values())
    return (
        f"{amount(tokens)} training tokens from {', '.join(prepared.domains_of('train'))}; "
        f"{held_out:,} bytes are held out and measured on"
    )
