"""Write a policy in a form that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expertise.policy.acting import Policy
from expertise.policy.export.describe import describe
from expertise.registry import Registry
from expertise.skills.folders import exporting

FORMATS = Registry(
    "export format",
    {
        "safetensors": "expertise.policy.export.arrays:write",
        "onnx": "expertise.policy.export.onnx:write",
    },
)
"""Form → function of a description, the policy, and a folder to write to; it returns facts for JSON. To add
one write it and add a line."""


def export_policy(policy: Policy, path: Path | str, to: str, *, pick: str | None = None) -> dict[str, Any]:
    """Write a policy to a new folder atomically.

    Args:
        policy: any kind except one whose skill is still in training.
        path: a folder that does not exist yet, or is empty.
        to: a key of `FORMATS`.
        pick: rule for choosing a candidate: "first", "max-q" or "min-qc"; None: the policy's own.

    Returns:
        `out`, `to`, `kind`, `names`, `pick`, `noise` (its shape `[sheets, states, candidates, actions]`, with
        None for the states), `files` (name → SHA-256), and the facts that the format adds.

    Raises:
        RecipeError: the form is unknown, or a part of the policy cannot be exported.
        MissingExtra: a package that the form needs is not installed.
        SkillError: `path` exists already.
        DiskError: the disk is full, read-only or forbidden; nothing is left there.
    """
    write, folder = FORMATS[to], Path(path)
    described = describe(policy, pick)
    with exporting(folder) as aside:
        facts: dict[str, Any] = write(described, policy, aside)
    document = described.document
    known = {key: document[key] for key in ("kind", "names", "pick")}
    candidates = 1 if document["critic"] is None else document["num_candidates"]
    noise = [document["sheets"], None, candidates, document["action_dim"]]
    return {"out": str(folder), "to": to, **known, "noise": noise, **facts}
