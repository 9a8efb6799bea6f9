"""Every kind of alpha through one contract, and what each of them starts from."""

from __future__ import annotations

import pytest
import torch

from expertise.errors import RecipeError
from expertise.policy.alpha import ALPHAS, AlphaConfig, ContextAlpha, FixedAlpha, TopPAlpha, Weighing
from expertise.runs import recipe as recipes


@pytest.mark.parametrize("name", ALPHAS)
def test_every_kind_gives_a_finite_weight_for_each_part_at_each_state(name: str) -> None:
    config = recipes.build({"alpha": {"name": name}}, Weighing).alpha
    assert isinstance(config, AlphaConfig)
    for states, parts in ((1, 1), (7, 3)):
        torch.manual_seed(0)
        alpha = config.build(4, parts)
        seen = torch.randn(states, 4)
        found = alpha(seen)
        assert found.shape == (states, parts)
        assert found.isfinite().all()
        # A state's weights do not depend on the states beside it.
        torch.testing.assert_close(alpha(seen[-1:]), found[-1:])


def test_a_network_starts_as_constant_weights_and_learns_from_there() -> None:
    alpha = ContextAlpha.Config(hidden=[8, 8], start=[1.0, -0.5]).build(3, 2)
    seen = torch.randn(6, 3)
    assert torch.equal(alpha(seen), torch.tensor([1.0, -0.5]).expand(6, 2))
    assert torch.equal(ContextAlpha.Config().build(3, 4)(seen), torch.full((6, 4), 0.25))
    optimizer = torch.optim.Adam(alpha.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (alpha(seen)[:, 0] - seen[:, 1]).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        away = (alpha(seen)[:, 0] - seen[:, 1]).abs()
    assert float(away.max()) < 0.1, "its layers before the last learn, too"


def test_constant_weights_learn_only_where_that_is_asked() -> None:
    seen = torch.randn(5, 3)
    given = FixedAlpha.Config(values=[0.5, 2.0]).build(3, 2)
    assert torch.equal(given(seen), torch.tensor([0.5, 2.0]).expand(5, 2))
    assert not any(parameter.requires_grad for parameter in given.parameters())
    assert all(p.requires_grad for p in FixedAlpha.Config(learn=True).build(3, 2).parameters())


def test_top_p_weighs_only_what_passes_p_and_may_leave_the_base_alone() -> None:
    alpha = TopPAlpha.Config(p=0.6, strength=2.0, hidden=[]).build(2, 3)
    with torch.no_grad():  # logits: the observation times these
        alpha.router.weight.copy_(torch.tensor([[4.0, 0.0], [3.0, 0.0], [0.0, 0.0], [0.0, 4.0]]))
    found = alpha(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    both = torch.softmax(torch.tensor([4.0, 3.0, 0.0, 0.0]), 0)
    assert float(both[0]) > 0.6
    torch.testing.assert_close(found[0], torch.tensor([2 * float(both[0]), 0.0, 0.0]))
    assert torch.equal(found[1], torch.zeros(3)), "the part that adds nothing has the mass"
    assert int((found[2] > 0).sum()) >= 2, "even probabilities: it takes three of four"
    found.sum().backward()
    assert alpha.router.weight.grad is not None
    assert alpha.router.weight.grad.abs().sum() > 0


def test_weights_for_another_number_of_parts_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"alpha.start has 3 weights for 2 parts"):
        ContextAlpha.Config(start=[1.0, 0.0, 0.0]).build(3, 2)
    with pytest.raises(RecipeError, match=r"alpha.values has 1 weights for 2 parts"):
        FixedAlpha.Config(values=[1.0]).build(3, 2)
    with pytest.raises(RecipeError, match="unknown 'contxt'"):
        recipes.build({"alpha": {"name": "contxt"}}, Weighing)
