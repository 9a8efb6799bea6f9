"""Writing what a policy computes in a form that other programs run."""

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
"""Form → a function of what is described, the policy, and a folder to fill; it returns facts for JSON. To add
one write it and add a line."""


def export_policy(policy: Policy, path: Path | str, to: str, *, pick: str | None = None) -> dict[str, Any]:
    """Write a policy to a new folder, whole or not at all.

    Args:
        policy: any kind but one whose skill still learns.
        path: a folder that is not there yet, or is empty.
        to: a key of `FORMATS`.
        pick: which candidate is taken: "first", "max-q" or "min-qc"; None: the policy's own way.

    Returns:
        `out`, `to`, `kind`, `names`, `pick`, `noise` (its shape `[sheets, states, candidates, actions]`, None
        for the states), `files` (name → SHA-256), and what the format adds.

    Raises:
        RecipeError: the form is not known, or a part of the policy cannot be exported.
        MissingExtra: a package that the form needs is not installed.
        SkillError: something is at `path` already.
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
