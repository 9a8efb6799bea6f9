"""The reference dispatch: a slow, plain loop for any dtype and routes, which all others must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from expertise.mixture.parts.base import Parts
from expertise.mixture.routes import Routes
from expertise.shapes import Float


def reference(
    x: Float[Tensor, "tokens in_features"], routes: Routes, parts: Parts
) -> Float[Tensor, "tokens out_features"]:
    """`y_t = sum over the parts i of token t of gate_{t,i} * part_i(x_t)`, token by token, part by part.

    Args:
        x: tokens.
        routes: sparse or dense.
        parts: any kind.
    """
    counts = routes.parts_per_token().tolist()
    part_ids = None if routes.part_ids is None else routes.part_ids.tolist()
    outputs = []
    for token in range(x.shape[0]):
        total = x.new_zeros(1, parts.out_features)
        for slot in range(counts[token]):
            part = slot if part_ids is None else part_ids[token][slot]
            total = total + routes.gates[token, slot].to(x.dtype) * parts.one(part, x[token : token + 1])
        outputs.append(total)
    return torch.cat(outputs) if outputs else x.new_zeros(0, parts.out_features)
