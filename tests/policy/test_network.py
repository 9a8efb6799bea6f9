"""The networks: their sizes and initial weights, and that they compute what the release computes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expertise.errors import RecipeError
from expertise.policy import NETWORKS, DiffusionConfig, PolicyConfig
from expertise.policy.network import Denoiser, PlainNetwork, ResidualNetwork
from expertise.runs import recipe as recipes


@pytest.fixture(params=sorted(NETWORKS))
def kind(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param]


def inputs(rows: int = 7, observations: int = 5, actions: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(rows, actions), torch.arange(rows) % 5, torch.randn(rows, observations)


def normed(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    """LayerNorm by hand, with Flax's epsilon."""
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias


def mish(x: Tensor) -> Tensor:
    return x * F.softplus(x).tanh()


def features(net: Any, times: Tensor) -> Tensor:
    angles = 2 * math.pi * times[:, None].float() @ net.features.frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def wake(net: nn.Module) -> None:
    """Move biases and norms away from where they start, where a mistake with them would not show."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_the_residual_network_computes_the_release_s() -> None:
    net = ResidualNetwork.Config(hidden=8, num_blocks=2, time_features=6).build(5, 2).eval()
    wake(net)
    actions, times, observations = inputs()
    condition = net.condition[2](mish(net.condition[0](features(net, times))))
    x = net.first(torch.cat([actions, observations, condition], dim=1))
    for block in net.blocks:
        x = x + block.down(mish(block.up(normed(x, block.norm))))
    torch.testing.assert_close(net(actions, times, observations), net.last(mish(x)))


def test_the_small_network_computes_what_it_says() -> None:
    net = PlainNetwork.Config(hidden=8, num_layers=2, time_features=4).build(5, 2)
    wake(net)
    actions, times, observations = inputs()
    x = torch.cat([actions, observations, features(net, times)], dim=1)
    for linear, norm in ((net.layers[0], net.layers[1]), (net.layers[3], net.layers[4])):
        x = mish(normed(linear(x), norm))
    torch.testing.assert_close(net(actions, times, observations), net.layers[6](x))


@pytest.mark.parametrize(("observations", "actions"), [(24, 6), (7, 2), (1, 1)])
def test_a_config_knows_its_size(kind: Any, observations: int, actions: int) -> None:
    config = kind.Config()
    net = config.build(observations, actions)
    assert config.num_params(observations, actions) == sum(p.numel() for p in net.parameters())
    assert (net.observation_dim, net.action_dim) == (observations, actions)
    smaller = recipes.build({"name": config.name, "hidden": 12, "time_features": 4}, kind.Config)
    built = smaller.build(observations, actions)
    assert smaller.num_params(observations, actions) == sum(p.numel() for p in built.parameters())


def test_the_sizes_that_papers_and_notes_state() -> None:
    assert ResidualNetwork.Config().num_params(24, 6) == pytest.approx(1.65e6, rel=0.01)
    assert PlainNetwork.Config().num_params(24, 6) == pytest.approx(0.15e6, rel=0.03)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = ResidualNetwork.Config().build(24, 6).requires_grad_(requires_grad=False)
    assert float(net.features.frequencies.std()) == pytest.approx(0.2, rel=0.35)
    for layer in (net.first, net.last, net.condition[0], net.condition[2]):
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert float(layer.weight.abs().max()) <= bound
        assert float(layer.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    for block in net.blocks:
        for layer in (block.up, block.down):
            std = layer.in_features**-0.5
            assert float(layer.weight.std()) == pytest.approx(std, rel=0.02)
            assert float(layer.weight.abs().max()) <= 2.28 * std, "cut at two standard deviations"
        assert block.norm.eps == 1e-6
    for module in net.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()


def test_every_learned_map_but_the_frequencies_is_a_linear_layer_that_is_called(kind: Any) -> None:
    """So a skill, which is laid over `nn.Linear`, reaches all of them, and no other parameter is a matrix."""
    net = kind.Config(hidden=8, time_features=4).build(5, 2)
    called = set()
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.add(name))
    net(*inputs())
    linear = {name for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert called == linear
    matrices = {name for name, parameter in net.named_parameters() if parameter.ndim > 1}
    assert matrices == {f"{name}.weight" for name in linear}


def test_a_row_depends_on_nothing_but_its_own_action_time_and_observation(kind: Any) -> None:
    net: Denoiser = kind.Config(hidden=8, time_features=4).build(5, 2).eval()
    wake(net)
    actions, times, observations = inputs()
    out = net(actions, times, observations)
    torch.testing.assert_close(net(actions[2:3], times[2:3], observations[2:3]), out[2:3])
    changed = (
        (actions + 1, times, observations),
        (actions, (times + 1) % 5, observations),
        (actions, times, observations + 1),
    )
    for arguments in changed:
        assert not torch.isclose(net(*arguments), out).all(1).any()


def test_dropout_is_the_release_s_and_in_training_only() -> None:
    net = ResidualNetwork.Config().build(5, 2)
    assert [block.dropout.p for block in net.blocks] == [0.1] * 3
    arguments = inputs()
    assert not torch.equal(net(*arguments), net(*arguments))
    net.eval()
    assert torch.equal(net(*arguments), net(*arguments))


def test_a_recipe_chooses_a_network_by_name() -> None:
    config = recipes.build({"network": {"name": "mlp", "hidden": 32}, "diffusion": {}}, PolicyConfig)
    assert config.network == PlainNetwork.Config(hidden=32)
    assert recipes.build({"diffusion": {}}, PolicyConfig).network == ResidualNetwork.Config()
    assert config.diffusion == DiffusionConfig()
    with pytest.raises(RecipeError, match=r"^network\.name: unknown 'mpl'$") as caught:
        recipes.build({"network": {"name": "mpl"}}, PolicyConfig)
    assert caught.value.hints == ("did you mean 'mlp'?",)


def test_wrong_sizes_are_one_line(kind: Any) -> None:
    with pytest.raises(RecipeError, match="must be even and at least 2, not 5"):
        kind.Config(time_features=5)
    with pytest.raises(RecipeError, match="a positive width and depth, not 0 and 3"):
        kind.Config(hidden=0)
