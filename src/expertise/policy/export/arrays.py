"""Write a policy as safetensors and JSON: a reader needs NumPy, or any other way to multiply matrices.

export.json           the description, and SHA-256 of the arrays
arrays.safetensors    the arrays
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expertise.policy.acting import Policy
from expertise.policy.export.describe import Described
from expertise.runs.files import sha256_of

DOCUMENT, ARRAYS = "export.json", "arrays.safetensors"


def write(described: Described, policy: Policy, folder: Path) -> dict[str, Any]:
    """Write description and arrays to a folder.

    Args:
        described: description of the policy.
        policy: not needed here.
        folder: the folder to write to.

    Returns:
        `files`, and `numbers`, the number of values in the arrays.
    """
    from safetensors.numpy import save_file

    save_file(described.arrays, folder / ARRAYS)
    digest = sha256_of(folder / ARRAYS)
    document = {**described.document, "arrays": {"file": ARRAYS, "sha256": digest}}
    (folder / DOCUMENT).write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return {
        "files": {ARRAYS: digest, DOCUMENT: sha256_of(folder / DOCUMENT)},
        "numbers": sum(array.size for array in described.arrays.values()),
    }
