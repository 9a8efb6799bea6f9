"""A fingerprint tells bases apart by names, shapes, dtypes and every bit of their weights."""

from __future__ import annotations

import torch
from torch import nn

from expertise.skills import fingerprint


def base(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def test_the_same_weights_have_the_same_fingerprint() -> None:
    first = fingerprint(base())
    assert first == fingerprint(base())
    assert first.num_params == 3 * 4 + 4 + 4 + 4 + 4 * 2 + 2
    assert first.difference(fingerprint(base())) is None


def test_one_changed_bit_is_another_base() -> None:
    model = base()
    before = fingerprint(model)
    with torch.no_grad():
        model[2].weight[1, 3] += 1e-6
    after = fingerprint(model)
    assert before.structure == after.structure
    assert before.difference(after) == "the same shapes with other weights"


def test_another_shape_name_or_dtype_is_another_structure() -> None:
    first = fingerprint(base())
    for other in (base(width=5), nn.ModuleDict({"x": base()}), base().double()):
        assert fingerprint(other).structure != first.structure
    assert first.difference(fingerprint(base(width=5))) == "42 parameters, not 34"
    assert first.difference(fingerprint(base().half())) == "other names, shapes or dtypes of its parameters"


def test_what_changes_while_a_model_is_used_does_not_count() -> None:
    model = base()
    before = fingerprint(model)
    model.train()(torch.randn(6, 3))  # moves the running statistics
    assert fingerprint(model) == before


def test_a_tied_weight_counts_once_and_layout_in_memory_does_not_count() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    first = fingerprint(model)
    assert first.num_params == 15
    model["embed"].weight.data = model["embed"].weight.data.t().contiguous().t()
    assert fingerprint(model) == first


def test_bfloat16_and_scalars_have_fingerprints() -> None:
    model = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))})
    assert fingerprint(model).num_params == 1
