"""An episode step by step and its skills, kept beside the rows, so that the page is drawn from files."""

from __future__ import annotations

import json
from pathlib import Path

from expertise.policy import Policy
from expertise.policy.evaluation import Evaluation
from expertise.policy.seeds import Evaluations
from expertise.report.policy_record import composed_of, policy_record
from expertise.report.records import PolicyRecord, from_json, to_json
from expertise.runs.files import write_atomic

FILM_EVERY = 4
"""Steps between pictures, of which the page takes some."""
SAFETY = "safety"
"""The skill for safety."""
_KEYS = ("trace", "skills", "similarity", "proposals")


def path_of(results: Path) -> Path:
    """The path of the episode, beside a file of rows."""
    return results.with_name(f"{results.stem}_shown.json")


def keep(results: Path, method: str, policy: Policy, evaluation: Evaluation) -> None:
    """Keep the first episode of an evaluation.

    Args:
        results: the file of rows.
        method: what it is called on the page.
        policy: who acted; its skills are compared.
        evaluation: with a trace, and pictures if there are any.
    """
    evaluations = {method: Evaluations(by_seed={0: evaluation})}
    found = to_json(policy_record(evaluations, safety=SAFETY, skills=composed_of({method: policy})[1]))
    kept = {key: found[key] for key in _KEYS if key in found}
    kept["trace"]["where"] = f"An episode of {found['environment']}"
    write_atomic(path_of(results), json.dumps(kept, ensure_ascii=False) + "\n")


def read(results: Path) -> PolicyRecord:
    """The kept entries of a page's record; an empty record where nothing was kept."""
    path = path_of(results)
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if "trace" in kept:
        kept["trace"]["safety"] = SAFETY  # earlier files do not say it
    return from_json(PolicyRecord, kept)
