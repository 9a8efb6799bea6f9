"""A context router: dense weights from a context vector, the same for all tokens that share it."""

from typing import Any

import pytest
import torch

from expertise.errors import RecipeError
from expertise.mixture import Context


@pytest.mark.parametrize("squash", ["none", "softmax", "sigmoid"])
def test_weights_are_the_networks_squashed(squash: Any) -> None:
    router = Context(3, 5, [7], squash)
    context = 3 * torch.randn(6, 3)
    routes = router(torch.randn(6, 2), context)
    assert routes.is_dense
    first, last = router.network[0], router.network[2]
    raw = (context @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    expected = {"none": raw, "softmax": raw.softmax(-1), "sigmoid": raw.sigmoid()}[squash]
    torch.testing.assert_close(routes.gates, expected)
    assert (routes.logits is not None) == (squash == "softmax")
    assert Context.Config(context_dim=3, squash=squash).has_logits() == (squash == "softmax")
    if squash == "none":
        assert routes.gates.min() < 0 < routes.gates.max()


def test_tokens_do_not_matter_and_gradients_reach_the_network_alone() -> None:
    router = Context(3, 5)
    context = torch.randn(4, 3)
    x = torch.randn(4, 2, requires_grad=True)
    routes = router(x, context)
    torch.testing.assert_close(routes.gates, router(torch.randn(4, 2), context).gates)
    gradients = torch.autograd.grad(routes.gates.sum(), [x, *router.parameters()], allow_unused=True)
    assert gradients[0] is None
    assert all(gradient is not None for gradient in gradients[1:])


def test_one_vector_may_serve_a_sequence_or_everything() -> None:
    router = Context(3, 5)
    x = torch.randn(2, 4, 8)
    per_sequence = torch.randn(2, 3)
    per_token = per_sequence[:, None].expand(2, 4, 3)
    torch.testing.assert_close(router(x, per_sequence).gates, router(x, per_token).gates)
    alone = router(x, per_sequence[0]).gates
    assert alone.shape == (8, 5)
    torch.testing.assert_close(alone[0], alone[7])
    torch.testing.assert_close(alone[0], router(x, per_sequence).gates[0])


@pytest.mark.parametrize(("hidden", "count"), [([], 4 * 5), ([7], 4 * 7 + 8 * 5), ([7, 6], 28 + 48 + 35)])
def test_size_without_a_tensor(hidden: list[int], count: int) -> None:
    config = Context.Config(context_dim=3, hidden=hidden)
    assert config.num_params(99, 5) == count
    assert sum(p.numel() for p in config.build(99, 5).parameters()) == count


def test_a_signature_of_two_numbers() -> None:
    """The paper's network: two hidden layers of 256, nothing that bounds the weights."""
    router = Context(3, 5)
    assert router.squash == "none"
    assert [layer.out_features for layer in router.network[::2]] == [256, 256, 5]


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "needs context vectors"),
        (torch.zeros(4, 3, dtype=torch.int64), "needs context vectors"),
        (torch.tensor(1.0), "needs context vectors"),
        (torch.zeros(4, 2), r"\[4, 2\] does not fit .* width 3"),
        (torch.zeros(5, 3), r"\[5, 3\] does not fit tokens of shape \[4\]"),
        (torch.zeros(4, 1, 3), "does not fit"),
    ],
)
def test_a_context_that_does_not_fit_is_refused(context: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Context(3, 5)(torch.randn(4, 8), context)


@pytest.mark.parametrize("sizes", [(0, 5, (7,)), (3, 0, (7,)), (3, 5, (0,))])
def test_widths_are_positive(sizes: Any) -> None:
    with pytest.raises(RecipeError, match="must be positive"):
        Context(*sizes)


def test_normalised_contexts_have_no_size() -> None:
    router = Context(3, 5, [7], normalize=True)
    context = torch.randn(6, 3)
    x = torch.randn(6, 2)
    expected = Context(3, 5, [7])
    expected.load_state_dict(router.state_dict())
    size = context.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(router(x, context).gates, expected(x, context / size).gates)
    torch.testing.assert_close(
        router(x, 1e-2 * context).gates, router(x, context).gates, rtol=1e-3, atol=1e-3
    )
    config = Context.Config(context_dim=3, hidden=[7], normalize=True)
    assert config.build(0, 5).normalize
    assert config.num_params(0, 5) == sum(p.numel() for p in router.parameters())
