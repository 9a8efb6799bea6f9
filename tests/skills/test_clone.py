"""A second tree over a base's storage: shared to the byte, and apart in everything else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from builders import llama, net, own_model, same_state, state_of, tokens
from torch import Tensor, nn

from expertise.errors import SkillError
from expertise.skills.clone import clone, guard, replace


class Tangled(nn.Module):
    """Modules that know each other in every way Python offers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.again = self.one
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.off: nn.Module | None = nn.Linear(4, 4)
        self.off = None
        self.held = [self.one, {"key": (self.two,)}]
        self.method = self.one.forward
        self.partly = functools.partial(self.scaled, 2.0)
        object.__setattr__(self, "hidden", self.two)
        self.plain = {"numbers": [1, 2]}
        self.register_buffer("count", torch.zeros(()))
        self.register_parameter("nothing", None)

    def scaled(self, factor: float, x: Tensor) -> Tensor:
        return factor * self.two(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.method(x) + self.held[1]["key"][0](x) + self.partly(x)  # type: ignore[index]


def test_weights_and_buffers_are_the_base_s_own_storage() -> None:
    for base in (own_model(), llama(), net()):
        twin = clone(base)
        assert type(twin) is type(base)
        assert list(twin.state_dict()) == list(base.state_dict())
        for (name, ours), theirs in zip(twin.named_parameters(), base.parameters(), strict=True):
            assert ours.data_ptr() == theirs.data_ptr(), name
            assert ours is not theirs
            assert not ours.requires_grad
            assert theirs.requires_grad
        for ours, theirs in zip(twin.buffers(), base.buffers(), strict=True):
            assert ours is theirs


def test_what_is_known_twice_is_known_twice_in_the_clone() -> None:
    base = Tangled()
    twin: Any = clone(base)
    assert twin.one is twin.again
    assert twin.one is not base.one
    assert twin.two.weight is twin.one.weight
    assert twin.held[0] is twin.one
    assert twin.held[1]["key"][0] is twin.two
    assert twin.hidden is twin.two
    assert twin.method.__self__ is twin.one
    assert twin.partly.func.__self__ is twin
    assert twin.off is None
    assert twin.nothing is None
    x = torch.randn(2, 4)
    assert torch.equal(twin(x), base(x))


def test_the_trees_do_not_see_each_other_s_changes() -> None:
    base = Tangled()
    before = state_of(base)
    twin: Any = clone(base)
    twin.one = nn.Linear(4, 4)
    twin.held.append(3)
    twin.plain["more"] = 1
    twin.count = torch.ones(())
    twin.extra = nn.Linear(2, 2)
    twin.register_forward_hook(lambda *_: None)
    twin.two.register_forward_pre_hook(lambda *_: None)
    twin.train()
    twin.double()
    same_state(before, state_of(base))
    assert len(base.held) == 2
    assert base.plain == {"numbers": [1, 2]}
    assert base.two.weight.dtype == torch.float32


def test_a_base_in_training_mode_stays_there() -> None:
    base = net(dropout=0.5).train()
    twin = clone(base)
    assert all(module.training for module in base.modules())
    assert not any(module.training for module in twin.modules())


def test_hooks_of_the_base_go_along() -> None:
    base = net()
    seen: list[nn.Module] = []
    base.first.register_forward_hook(lambda module, *_: seen.append(module))
    twin: Any = clone(base)
    twin(torch.randn(2, 6))
    assert seen == [twin.first]


def test_replacing_reaches_every_place() -> None:
    twin: Any = clone(Tangled())
    old, new = twin.one, nn.Identity()
    new.inside = old
    replace(twin, {old: new})
    assert twin.one is new
    assert twin.again is new
    assert twin.held[0] is new
    assert new.inside is old
    assert twin.method.__self__ is new


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), r"0 changes its own weights .*max_norm"),
        (lambda: nn.Sequential(nn.EmbeddingBag(3, 2, max_norm=1.0)), "0 changes its own weights"),
    ],
)
def test_what_cannot_be_shared_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SkillError, match=message):
        clone(make())


def test_a_forward_that_was_replaced_is_named() -> None:
    base = net()
    base.rest[1].forward = lambda x: x
    with pytest.raises(SkillError, match=r"rest\.1 runs something else") as refused:
        clone(base)
    assert "device_map" in refused.value.hints[0]


def test_a_base_s_storage_cannot_be_loaded_over() -> None:
    base = net()
    twin = clone(base)
    twin.more = nn.Linear(2, 2)
    guard(twin, base)
    same = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    same["more.weight"] += 1
    twin.load_state_dict(same)
    assert torch.equal(twin.state_dict()["more.weight"], same["more.weight"])
    before = state_of(base)
    other = {**same, "rest.1.weight": same["rest.1.weight"] + 1e-6}
    with pytest.raises(SkillError, match=r"saved with another base: rest\.1\.weight differs"):
        twin.load_state_dict(other)
    with pytest.raises(SkillError, match=r"first\.bias differs"):
        twin.load_state_dict({**same, "first.bias": torch.zeros(3)})
    same_state(before, state_of(base))
    # Assigned, nothing is written anywhere; moved, the storage is no longer the base's.
    twin.load_state_dict(other, assign=True)
    moved = clone(base).double()
    guard(moved, base)
    moved.load_state_dict(net(seed=1).state_dict())
    same_state(before, state_of(base))


def test_a_clone_computes_what_the_base_does() -> None:
    base, ids = llama(), tokens()
    with torch.no_grad():
        assert torch.equal(clone(base)(ids).logits, base(ids).logits)
