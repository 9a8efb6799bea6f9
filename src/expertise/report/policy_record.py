"""The record of the page of policies, from episodes of several policies in one environment."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expertise import __version__
from expertise.errors import DataError
from expertise.policy.acting import Policy
from expertise.policy.compose import ComposedPolicy
from expertise.policy.evaluation import Trace
from expertise.policy.seeds import Evaluations
from expertise.report.records import Episode, Group, Metric, Outcome, PolicyRecord, SkillEnergy
from expertise.report.skills import similarity_of
from expertise.skills.compare import compare_skills
from expertise.skills.skill import Skill

NUM_FRAMES = 8
"""Pictures of an episode on the page."""
FILM_EVERY = 8
"""Steps from one picture to the next that leave enough to choose from."""
_FRAME_WIDTH = 240
_SHOWN = (("success",), ("normalized_reward", "return"), ("normalized_cost", "cost"))
"""Metrics of a page: of each group the first that there is."""


def policy_record(
    evaluations: Mapping[str, Evaluations],
    *,
    title: str = "policies",
    ours: str = "",
    safety: str = "",
    skills: Sequence[Skill] = (),
    notes: Sequence[str] = (),
) -> PolicyRecord:
    """The record that `report.policy.render` draws.

    Args:
        evaluations: row → episodes, all in one environment; the trace that is shown is of the first seed and
            the first row that weighs something up, `ours` before others; where none does, of the first row.
        title: the page's name.
        ours: the row of the headline; empty: all policies are alike to the page.
        safety: the skill for safety among those that the shown row weighs; empty: there is none.
        skills: of one base, to be compared.
        notes: sentences about how it was measured.

    Raises:
        DataError: there are no evaluations, or they are of several environments.
    """
    environments = {found.first.environment for found in evaluations.values()}
    if len(environments) != 1:
        raise DataError(
            "a page of policies needs evaluations of one environment, "
            + (f"not of {', '.join(sorted(environments))}" if environments else "and there are none")
        )
    return PolicyRecord(
        title=title,
        environment=environments.pop(),
        ours=ours,
        groups=[Group(metrics=list(_metrics(evaluations)))],
        trace=_episode(evaluations, ours, safety),
        **(_compared(skills) if skills else {}),
        notes=[*notes, _how(evaluations)],
        versions={"expertise": __version__, "python": platform.python_version()},
    )


def _compared(skills: Sequence[Skill]) -> dict[str, Any]:
    found = compare_skills(skills)
    return {
        "skills": [SkillEnergy(name=energy.name, energy=energy.shares()) for energy in found.energies],
        "similarity": similarity_of(found, [skill.name for skill in skills], "the noise"),
        "proposals": [proposal.reason for proposal in found.proposals],
    }


def _metrics(evaluations: Mapping[str, Evaluations]) -> Iterator[Metric]:
    summaries = {row: evaluation.summary() for row, evaluation in evaluations.items()}
    for names in _SHOWN:
        name = next((n for n in names if all(n in summary for summary in summaries.values())), None)
        if name is not None:
            outcomes = [
                Outcome(name=row, mean=summary[name], error=summary.get(f"{name}_error"))
                for row, summary in summaries.items()
            ]
            yield Metric(name=name, rows=outcomes)


def _episode(evaluations: Mapping[str, Evaluations], ours: str, safety: str) -> Episode | None:
    order = sorted(evaluations, key=lambda row: row != ours)
    traces = [(row, trace) for row in order for trace in evaluations[row].first.traces]
    if not traces:
        return None
    row, trace = next((each for each in traces if each[1].alpha is not None), traces[0])
    first, values = evaluations[row].first, trace.to_json()
    if not first.has_cost:
        values["costs"] = []
    names = list(first.names)
    return Episode(
        method=row, safety=safety if safety in names else "", names=names, **{**values, **_film(trace)}
    )


def _film(trace: Trace) -> dict[str, Any]:
    """Pictures that are evenly spaced over the episode, as data URLs."""
    if not len(trace.frames):
        return {"frames": [], "frame_steps": []}
    number = min(NUM_FRAMES, len(trace.frames))
    starts = [len(trace.rewards) * i / number for i in range(number)]
    nearest = [
        min(range(len(trace.frames)), key=lambda j: abs(trace.frame_steps[j] - start)) for start in starts
    ]
    return {
        "frames": [_url(trace.frames[j]) for j in nearest],
        "frame_steps": [int(trace.frame_steps[j]) for j in nearest],
    }


def _url(frame: Any) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((_FRAME_WIDTH, _FRAME_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def composed_of(policies: Mapping[str, Policy]) -> tuple[str, Sequence[Skill]]:
    """The first row that composes skills, and these skills; an empty name where none does."""
    found = ((row, policy.skills) for row, policy in policies.items() if isinstance(policy, ComposedPolicy))
    return next(found, ("", ()))


def _how(evaluations: Mapping[str, Evaluations]) -> str:
    counts = sorted({len(found.first.episodes) for found in evaluations.values()})
    words = f"{' or '.join(map(str, counts))} episodes of each policy, every one from the same starts"
    seeds = max(len(found.by_seed) for found in evaluations.values())
    if seeds > 1:
        words += f", under each of {seeds} seeds"
    limits = sorted({f.first.cost_limit for f in evaluations.values() if f.first.has_cost})
    return f"{words}; cost limit {' or '.join(f'{limit:g}' for limit in limits)}." if limits else f"{words}."
