"""Dispatch of sparse routes: sort by part, one grouped product per weight, add back with the gates."""

from __future__ import annotations

import torch
from torch import Tensor

from expertise.mixture.parts.base import Parts
from expertise.mixture.routes import Routes
from expertise.shapes import Float


def grouped(
    x: Float[Tensor, "tokens in_features"], routes: Routes, parts: Parts
) -> Float[Tensor, "tokens out_features"]:
    """Sum over the chosen parts; work grows with the number of chosen pairs. No token is dropped.

    With a fixed number of parts per token nothing here waits for the device; with a varying one the number
    of pairs is read once. (On CUDA the add back uses atomic adds: exact repetition needs
    `torch.use_deterministic_algorithms(True)`.)

    Args:
        x: tokens.
        routes: sparse; dense ones are taken as "every part".
        parts: any kind.
    """
    num_tokens, num_slots = x.shape[0], routes.num_slots
    if routes.part_ids is None:
        part_of_slot = torch.arange(num_slots, device=x.device).repeat(num_tokens)
    else:
        part_of_slot = routes.part_ids.reshape(-1)
        if routes.counts is not None:
            # Unused slots sort behind every part and are cut off below.
            part_of_slot = torch.where(part_of_slot < 0, parts.num_parts, part_of_slot)
    part_of_row, slot_of_row = torch.sort(part_of_slot, stable=True)
    part_numbers = torch.arange(parts.num_parts, device=x.device)
    offsets = torch.searchsorted(part_of_row, part_numbers, right=True).to(torch.int32)
    if routes.counts is not None:
        slot_of_row = slot_of_row[: int(routes.counts.sum())]
    token_of_row = slot_of_row // num_slots

    rows = parts.grouped(x.index_select(0, token_of_row), offsets)
    gates = routes.gates.reshape(-1).index_select(0, slot_of_row).to(rows.dtype)
    rows = rows * gates[:, None]
    return rows.new_zeros(num_tokens, parts.out_features).index_add(0, token_of_row, rows).to(x.dtype)
