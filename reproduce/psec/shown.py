"""An episode step by step and its skills, kept beside the rows, so that the page is drawn from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expertise.policy import Policy
from expertise.policy.evaluation import Evaluation
from expertise.policy.seeds import Evaluations
from expertise.report.policy_record import policy_record, skills_shown
from expertise.runs.files import write_atomic

FILM_EVERY = 4
"""Steps between pictures, of which the page takes some."""
_KEYS = ("trace", "skills", "similarity", "proposals")


def path_of(results: Path) -> Path:
    """Where it is, beside a file of rows."""
    return results.with_name(f"{results.stem}_shown.json")


def keep(results: Path, method: str, policy: Policy, evaluation: Evaluation) -> None:
    """Keep the first episode of an evaluation.

    Args:
        results: the file of rows.
        method: what it is called on the page.
        policy: who acted; its skills are compared.
        evaluation: with a trace, and pictures if there are any.
    """
    found = policy_record(
        {method: Evaluations(by_seed={0: evaluation})}, skills=skills_shown({method: policy})
    )
    kept = {key: found[key] for key in _KEYS if key in found}
    kept["trace"]["where"] = f"An episode of {found['environment']}"
    write_atomic(path_of(results), json.dumps(kept, ensure_ascii=False) + "\n")


def read(results: Path) -> dict[str, Any]:
    """What was kept, as entries of a page's record; empty: nothing was."""
    path = path_of(results)
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}
