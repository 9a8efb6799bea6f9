"""What the page of policies shows, from episodes of several policies in one environment."""

from __future__ import annotations

import base64
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expertise import __version__
from expertise.errors import DataError
from expertise.policy.acting import Policy
from expertise.policy.compose import ComposedPolicy
from expertise.policy.evaluation import Trace
from expertise.policy.seeds import Evaluations
from expertise.report.alike import similarity_of
from expertise.report.policy import render
from expertise.report.policy_paper import COST_LIMIT, paper_value
from expertise.runs.files import write_atomic
from expertise.runs.metrics import finite
from expertise.skills.compare import compare_skills
from expertise.skills.skill import Skill

PAGE, RECORD = "policy.html", "policy.json"
NUM_FRAMES = 8
"""Pictures of an episode on the page."""
FILM_EVERY = 8
"""Steps from one picture to the next that leave enough to choose from."""
_FRAME_WIDTH = 240
_SHOWN = (("success",), ("normalized_reward", "return"), ("normalized_cost", "cost"))
"""Metrics of a page: of each group the first that there is."""


def write_policy_page(
    path: Path,
    evaluations: Mapping[str, Evaluations],
    *,
    title: str = "policies",
    skills: Sequence[Skill] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write `policy.html`, and its numbers as `policy.json`, into a folder.

    Args:
        path: the folder.
        evaluations: row → episodes, all in one environment; the trace that is shown is of the first seed and
            the first row that weighs something up, PSEC before others; where none does, of the first row.
        title: the page's name.
        skills: of one base, to be compared.
        curves: as in the record of `report.policy`.
        notes: sentences about how it was measured.

    Returns:
        The page's path.

    Raises:
        DataError: there are no evaluations, or they are of several environments.
        DiskError: the page cannot be written.
    """
    record = policy_record(evaluations, title=title, skills=skills, curves=curves, notes=notes)
    write_atomic(path / RECORD, json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(path / PAGE, render(record))
    return path / PAGE


def policy_record(
    evaluations: Mapping[str, Evaluations],
    *,
    title: str = "policies",
    skills: Sequence[Skill] = (),
    curves: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The record that `report.policy.render` draws; arguments and errors as in `write_policy_page`."""
    environments = {found.first.environment for found in evaluations.values()}
    if len(environments) != 1:
        raise DataError(
            "a page of policies needs evaluations of one environment, "
            + (f"not of {', '.join(sorted(environments))}" if environments else "and there are none")
        )
    (environment,) = environments
    return {
        "title": title,
        "environment": environment,
        "groups": [_group(environment, evaluations)],
        "curves": [dict(curve) for curve in curves],
        "trace": _trace(evaluations),
        **_skills(skills),
        "notes": [*notes, _how(evaluations)],
        "versions": {"expertise": __version__, "python": platform.python_version()},
    }


def _group(environment: str, evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    summaries = {row: evaluation.summary() for row, evaluation in evaluations.items()}
    metrics = []
    for names in _SHOWN:
        name = next((n for n in names if all(n in summary for summary in summaries.values())), None)
        if name is not None:
            lines = [
                {
                    "name": row,
                    "mean": summary[name],
                    "error": summary.get(f"{name}_error"),
                    "paper": _paper(environment, row, name, evaluations[row]),
                }
                for row, summary in summaries.items()
            ]
            metrics.append({"name": name, "rows": lines})
    return {"title": "", "metrics": metrics}


def _paper(environment: str, row: str, metric: str, evaluation: Evaluations) -> float | None:
    """The paper's figure, but for costs that are measured by another limit than its own."""
    if metric == "normalized_cost" and evaluation.first.cost_limit != COST_LIMIT:
        return None
    return paper_value(environment, row, metric)


def _trace(evaluations: Mapping[str, Evaluations]) -> dict[str, Any]:
    traces = [(row, trace) for row in _order(evaluations) for trace in evaluations[row].first.traces]
    if not traces:
        return {}
    row, trace = next((each for each in traces if each[1].alpha is not None), traces[0])
    first = evaluations[row].first
    return {
        "method": row,
        "names": list(first.names),
        **(trace.to_json() | ({} if first.has_cost else {"costs": []})),
        **_film(trace),
    }


def _order(rows: Iterable[str]) -> list[str]:
    """Whose episode is shown rather than others': PSEC's, then as they came."""
    return sorted(rows, key=lambda row: row != "PSEC")


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


def skills_shown(policies: Mapping[str, Policy]) -> list[Skill]:
    """What there is to compare: the skills of the policy whose trace is shown, if it composes any."""
    weighing = next((policies[row] for row in _order(policies) if policies[row].names), None)
    return weighing.skills if isinstance(weighing, ComposedPolicy) else []


def _skills(skills: Sequence[Skill]) -> dict[str, Any]:
    if not skills:
        return {}
    found, names = compare_skills(skills), [skill.name for skill in skills]
    return {
        "skills": [{"name": energy.name, "energy": energy.shares()} for energy in found.energies],
        "similarity": similarity_of(found, names, "the noise"),
        "proposals": [proposal.reason for proposal in found.proposals],
    }


def _how(evaluations: Mapping[str, Evaluations]) -> str:
    counts = sorted({len(found.first.episodes) for found in evaluations.values()})
    words = f"{' or '.join(map(str, counts))} episodes of each policy, every one from the same starts"
    seeds = max(len(found.by_seed) for found in evaluations.values())
    if seeds > 1:
        words += f", under each of {seeds} seeds"
    limits = sorted({f.first.cost_limit for f in evaluations.values() if f.first.has_cost})
    return f"{words}; cost limit {' or '.join(f'{limit:g}' for limit in limits)}." if limits else f"{words}."
