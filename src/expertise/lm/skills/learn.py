"""Learning a skill of a language model, and a router over skills."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expertise.errors import RunError, SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.data import Prepared
from expertise.lm.evaluate import DomainText, Evaluation, evaluate
from expertise.lm.notes import Notes
from expertise.lm.reading import prepare_for
from expertise.lm.recipe import may_change
from expertise.lm.skills.config import ComposeConfig, LearnConfig
from expertise.lm.skills.task import CompositionTask
from expertise.lm.train import DATA, data_of, refuse_other_text
from expertise.runs import folder, loop, metrics
from expertise.runs.device import limit_threads
from expertise.runs.files import write_atomic
from expertise.skills.compose import compose
from expertise.skills.composition import composition_of
from expertise.skills.fingerprint import fingerprint
from expertise.skills.folders import require_name
from expertise.skills.learn import fresh, learnt, trainable
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
    comparison: SideBySide
    """It beside what it is made of, on held-out text."""
    metrics: dict[str, Any]
    """`bits_per_byte` of the comparison, `skills` (mean alpha by domain), `steps`, `tokens`."""
    data: str
    """The sources, in words."""
    data_digest: str
    """SHA-256 of them."""
    notes: Notes
    """For `save_composed`, so that the text is found again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideBySide:
    """A composed model beside what it is made of, on the same text."""

    base: Evaluation
    """Without any skill."""
    skills: dict[str, Evaluation]
    """Each skill alone, with weight 1."""
    uniform: Evaluation
    """All skills, each with weight 1 / K."""
    composed: Evaluation
    """As the composed model itself weighs them."""

    def rows(self) -> dict[str, Evaluation]:
        """Title → evaluation, for a table."""
        skills = {f"skill {name}": found for name, found in self.skills.items()}
        return {"base": self.base, **skills, "uniform": self.uniform, "composed": self.composed}

    def to_json(self) -> dict[str, Any]:
        """Bits per byte by domain, with their mean, of `base`, `skills` (by name), `uniform`, `composed`."""
        return {
            "base": _bits(self.base),
            "skills": {name: _bits(found) for name, found in self.skills.items()},
            "uniform": _bits(self.uniform),
            "composed": _bits(self.composed),
        }


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
        base: any language model, where it is to be trained; it is not changed.
        name: what the skill is called.
        config: data, factors, training.
        work: a run's folder; one that was stopped goes on, a finished one gives its result again.
        beside: skills that stay as they are and are at work while it learns ("expansion").
        weights: theirs; None: 1 each.
        say: told what happens, a line at a time.

    Raises:
        ExpertiseError: any mistake of the user's; see `expertise.errors`.
        Stopped: a signal asked for it; everything is saved.
    """
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
    alpha = composition_of(model.core).default_weights().tolist()
    after = _train(base, task, work, {"skill": name, "beside": _digests(beside), "weights": alpha}, say)
    before = evaluate_weights(
        model, task.texts(), config.evaluation.batch_size, [*alpha[:-1], 0.0], config.train.bfloat16
    )
    return LearntSkill(
        skill=learnt(model.core, name),
        model=model,
        metrics={
            "bits_per_byte": {"before": _bits(before), "after": after["bits_per_byte"]},
            **_effort(task),
            **({"beside": dict(zip([s.name for s in beside], alpha, strict=False))} if beside else {}),
        },
        data=describe_data(prepared, config),
        data_digest=prepared.digest,
    )


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
        base: any language model, where it is to be trained; it is not changed.
        skills: at least one.
        config: data, router, training.
        work: a run's folder; one that was stopped goes on, a finished one gives its result again.
        say: told what happens, a line at a time.

    Raises:
        ExpertiseError: any mistake of the user's; see `expertise.errors`.
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
    _train(base, task, work, {"skills": _digests(skills)}, say)
    found = comparison(model, task.texts(), config.evaluation.batch_size, config.train.bfloat16)
    return LearntRouter(
        model=model,
        comparison=found,
        metrics={
            "bits_per_byte": found.to_json(),
            "skills": found.composed.to_json()["skills"],
            **_effort(task),
        },
        data=describe_data(prepared, config),
        data_digest=prepared.digest,
        notes=Notes(
            data=config.data,
            reads_documents=prepared.packed,
            context=task.window,
            bfloat16=config.train.bfloat16,
        ),
    )


def comparison(
    model: CausalLM, texts: list[DomainText], batch_size: int, bfloat16: bool = False
) -> SideBySide:
    """A composed model beside what it is made of, on the same text.

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
    """A composed model with these constant weights in place of its own; a missing name counts as 0."""
    with composition_of(model.core).using(weights=weights):
        return evaluate(model, texts, batch_size, bfloat16)


def describe_data(prepared: Prepared, config: LearnConfig | ComposeConfig) -> str:
    """The sources of a training, in words."""
    source = config.data.source
    places = source if isinstance(source, str) else ", ".join(table.path or table.hub for table in source)
    return f"{places}: {', '.join(prepared.domains)}"


def _train(
    base: CausalLM,
    task: CompositionTask,
    work: Path,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train to the last step, and give what held-out text then said."""
    folder.require_free_or_run(work)
    if task.config.train.tensorboard:
        metrics.require_tensorboard()
    for note in task.notes:
        say(note)
    known = {**facts, "base": dataclasses.asdict(fingerprint(base.core))}
    with folder.held(work):
        folder.adopt_recipe(work, task.config, may_change)
        _adopt_facts(work, task.prepared, known)
        loop.train(work, task, task.config.train, task.config.optimizer)
    evaluations = [r for r in metrics.read_lines(work / "metrics.jsonl") if r["kind"] == "evaluation"]
    return evaluations[-1]


def _adopt_facts(work: Path, prepared: Prepared, facts: Mapping[str, Any]) -> None:
    """Note what is learnt from what; refuse to go on with anything else."""
    path = work / DATA
    if not path.is_file():
        content = {"digest": prepared.digest, "domains": list(prepared.domains), **facts}
        write_atomic(path, json.dumps(content, indent=1) + "\n")
        return
    before = data_of(work)
    refuse_other_text(work, before["digest"], prepared.digest)
    for key, value in facts.items():
        if before.get(key) != value:
            raise RunError(
                f"{work} was begun with another {key}", "delete that folder, or name another one with --work"
            )


def _digests(skills: Sequence[Skill]) -> dict[str, str]:
    """Name of each skill → SHA-256 of its factors."""
    found = {}
    for skill in skills:
        digest = hashlib.sha256()
        for address, factors in skill.factors.items():
            digest.update(f"{address} {factors.scaling}".encode())
            for tensor in (factors.A, factors.B):
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found[skill.name] = digest.hexdigest()
    if len(found) != len(skills):
        raise SkillError("two skills have the same name")
    return found


def _bits(evaluation: Evaluation) -> dict[str, float]:
    bits: dict[str, float] = evaluation.to_json()["bits_per_byte"]
    return bits


def _effort(task: CompositionTask) -> dict[str, int]:
    steps = task.config.train.steps
    return {"steps": steps, "tokens": steps * task.units_per_step}


def _amount(prepared: Prepared) -> str:
    tokens = sum(prepared.tokens_count["train"].values())
    return f"{tokens:,} training tokens from {', '.join(prepared.domains)}"
