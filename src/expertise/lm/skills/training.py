"""The folder of a training: the facts that it was begun with, and the run itself."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expertise.errors import RunError, SkillError
from expertise.lm.causal import CausalLM
from expertise.lm.data import Prepared
from expertise.lm.recipe import may_change
from expertise.lm.skills.task import CompositionTask
from expertise.lm.train import DATA, data_of, refuse_other_text
from expertise.runs import folder, loop, metrics
from expertise.runs.config import memory_hints
from expertise.runs.files import write_atomic
from expertise.runs.schedule import rate_notes
from expertise.skills.fingerprints import fingerprint
from expertise.skills.skill import Skill


def run(
    base: CausalLM,
    task: CompositionTask,
    work: Path,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train to the last step, resuming from the folder's newest checkpoint.

    Args:
        base: the model that the skills adapt.
        task: the task to train.
        work: the run's folder.
        facts: inputs of the training, for JSON; a folder with other facts is refused.
        say: called with each line of progress.

    Returns:
        The last evaluation of held-out text.

    Raises:
        RunError: the folder belongs to something else, or its training was begun with other inputs.
        Stopped: a signal asked for it; everything is saved.
    """
    known = check(base, task, work, facts, say)
    with folder.held(work):
        with _naming_work():
            _refuse_other_facts(work, task.prepared, known)
            for note in rate_notes(work, task.config):
                say(note)
            folder.adopt_recipe(work, task.config, may_change)
        if not (work / DATA).is_file():
            content = {"digest": task.prepared.digest, "domains": list(task.prepared.domains), **known}
            write_atomic(work / DATA, json.dumps(content, indent=1) + "\n")
        hints = memory_hints(task.config.train, "context", option="--work")
        loop.train(work, task, task.config.train, task.config.optimizer, hints)
    evaluations = [r for r in metrics.read_lines(work / "metrics.jsonl") if r["kind"] == "evaluation"]
    return evaluations[-1]


def check(
    base: CausalLM,
    task: CompositionTask,
    work: Path,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do all that `run` does before it writes to the folder; the arguments are the same.

    Returns:
        The facts with the base's fingerprint.

    Raises:
        RunError: the folder belongs to something else, or its training was begun with other inputs.
    """
    if task.config.train.tensorboard:
        metrics.require_tensorboard()
    for note in task.notes:
        say(note)
    known = {**facts, "base": dataclasses.asdict(fingerprint(base.core))}
    with _naming_work():
        folder.require_free_or_run(work)
        if folder.is_run(work):
            _refuse_other_facts(work, task.prepared, known)
            folder.refuse_changes(work, task.config, may_change)
    return known


def _refuse_other_facts(work: Path, prepared: Prepared, facts: Mapping[str, Any]) -> None:
    """Refuse to resume with other text, another base or other skills than the training was begun with."""
    if not (work / DATA).is_file():
        return
    before = data_of(work)
    refuse_other_text(work, before["digest"], prepared.digest)
    for key, value in facts.items():
        if before.get(key) != value:
            raise RunError(f"{work} was begun with another {key}")


@contextlib.contextmanager
def _naming_work() -> Iterator[None]:
    """Name the option `--work` in errors about the folder."""
    try:
        yield
    except RunError as error:
        hints = [hint.replace("--out", "--work") for hint in error.hints]
        anew = "delete that folder, or name another one with --work"
        raise RunError(error.message, *(hints or [anew])) from None


def digests_of(skills: Sequence[Skill]) -> dict[str, str]:
    """Return the SHA-256 of each skill's factors by name."""
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
