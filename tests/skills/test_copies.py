"""A composed model copied, saved, compiled, and on several ranks."""

from __future__ import annotations

import copy
import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from builders import (
    LANGUAGE_MODELS,
    close,
    llama,
    logits_of,
    net,
    own_model,
    same_state,
    some_skills,
    state_of,
    tokens,
)
from torch import nn

from expertise.errors import SkillError
from expertise.mixture import Context, TopK
from expertise.skills import compose, extended, merged, skills_of

HERE = pathlib.Path(__file__).parent


def routed(base: nn.Module, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return compose(base, some_skills(base, "all", "all"), router=Context(32, 2, (7,)), reads="pooled", **more)


@pytest.mark.parametrize("make", LANGUAGE_MODELS.values(), ids=list(LANGUAGE_MODELS))
def test_a_copy_after_a_training_step_stands_by_itself(make: Any) -> None:
    base, ids = make(), tokens()
    model = routed(base)
    model.train()
    with model.composition.recording():
        out = model(ids)
    (out if isinstance(out, torch.Tensor) else out.logits).sum().backward()
    before = state_of(base)
    twin = copy.deepcopy(model)
    expected = logits_of(model, ids)
    assert torch.equal(logits_of(twin, ids), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert not torch.equal(logits_of(twin, ids), expected)
    assert torch.equal(logits_of(model, ids), expected)
    same_state(before, state_of(base))
    assert twin.composition is not model.composition
    assert twin.composition.base is base
    assert all(layer._composition[0] is twin.composition for layer in twin.composition.adapted.values())
    with pytest.raises(SkillError, match="no call was recorded"):
        twin.composition.alpha()


def test_a_copy_of_ours_enters_by_its_own_methods() -> None:
    base, ids = own_model(), tokens()
    model: Any = compose(base, some_skills(base, "all"), weights=[1.0])
    twin = copy.deepcopy(model)
    twin.composition.set_weights([0.0])
    with torch.no_grad():
        assert torch.equal(twin.hidden(ids), base.hidden(ids))
        assert not torch.equal(model.hidden(ids), base.hidden(ids))
    twin.train()
    assert twin.composition.training
    assert not model.composition.training


def test_a_state_is_loaded_into_another_composition_of_the_base() -> None:
    base, ids = own_model(), tokens()
    first = routed(base)
    second = routed(base, seed=1)
    assert not torch.equal(logits_of(first, ids), logits_of(second, ids))
    state = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second.load_state_dict(state)
    assert torch.equal(logits_of(second, ids), logits_of(first, ids))
    # Another base's weights must not be written over this one's.
    other = routed(own_model(seed=1))
    before = state_of(base)
    with pytest.raises(SkillError, match="saved with another base"):
        second.load_state_dict(other.state_dict())
    same_state(before, state_of(base))


def test_every_parameter_has_one_name() -> None:
    base = own_model()
    model = routed(base, growing=None)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    places = [p.data_ptr() for p in model.parameters()]
    assert len(names) == len(places) == len(set(places))
    assert sum("router.network" in name for name in names) == 4


def test_what_is_made_of_a_copy() -> None:
    base, ids = net(), torch.randn(4, 6)
    a, b, c = some_skills(base, "*", "first", "*")
    twin: Any = copy.deepcopy(compose(base, [a, b], weights=[0.7, -0.3]))
    close(merged(twin)(ids), twin(ids))
    assert [skill.name for skill in skills_of(extended(twin, c))] == ["a", "b", "c"]


@pytest.mark.slow
def test_compiled_models_compute_the_same_call_after_call() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "compiled_compositions.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"fixed", "context", "token", "layer"}
    wrong = {name: value for name, value in found.items() if isinstance(value, str) or value > 1e-5}
    assert not wrong


RANK = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import torch
from builders import own_model, some_skills, tokens
from expertise.mixture import Context
from expertise.skills import compose
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
base = own_model()
before = [p.clone() for p in base.parameters()]
torch.manual_seed(0)
model = compose(base, some_skills(base, "all", "all"), router=Context(32, 2, (7,)), reads="pooled")
parallel = DistributedDataParallel(model)
parallel.train()
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for step in range(2):
    ids = tokens(4, 8, seed=step)[2 * rank : 2 * rank + 2]
    loss = cross_entropy(parallel(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
print(repr([p.flatten().tolist() for p in model.composition.router.parameters()]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_ranks_train_the_router_as_one_would() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**variables, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert found[0] == found[1]

    base = own_model()
    model = routed(base)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = [p.detach().clone() for p in model.composition.router.parameters()]
    for step in range(2):
        ids = tokens(4, 8, seed=step)
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, theirs, before in zip(model.composition.router.parameters(), found[0], start, strict=True):
        close(torch.tensor(theirs), ours.flatten(), 1e-6)
        assert (ours - before).abs().max() > 1e-4


def test_routers_per_layer_are_in_the_state_too() -> None:
    base, ids = llama(), tokens()
    model = compose(base, some_skills(base, "q_proj", "q_proj"), router=TopK.Config(k=1))
    names = [name for name in model.state_dict() if "router" in name]
    assert names == [f"model.layers.{i}.self_attn.q_proj.mixture.router.weight" for i in (0, 1)]
    twin = compose(base, some_skills(base, "q_proj", "q_proj"), router=TopK.Config(k=1))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(twin, ids), logits_of(model, ids))
