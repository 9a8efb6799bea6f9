"""Which base a skill belongs to: a digest of names and shapes, and one of the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch
from torch import nn

from expertise.skills.card import Fingerprint


def fingerprint(base: nn.Module, order: Callable[[str], str] = str) -> Fingerprint:
    """The fingerprint of a base as it is now.

    Over `named_parameters()` sorted by name, so a tied weight counts once, by its first name. Buffers do not
    count: what they hold follows from the structure, or changes while the model is used. The same weights in
    another dtype are another base; the device does not matter.

    Args:
        base: the model that skills are learnt on, nothing attached to it.
        order: name → what is sorted by instead.
    """
    structure, weights, count = [], hashlib.sha256(), 0
    for name, parameter in sorted(base.named_parameters(), key=lambda each: order(each[0])):
        structure.append([name, str(parameter.dtype), list(parameter.shape)])
        plain = parameter.detach().cpu().contiguous().flatten()
        weights.update(plain.view(torch.uint8).numpy().data)
        count += parameter.numel()
    digest = hashlib.sha256(json.dumps(structure).encode())
    return Fingerprint(structure=digest.hexdigest(), weights=weights.hexdigest(), num_params=count)
