"""The process and its sampler against what is known in closed form for normally distributed data."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from expertise.errors import RecipeError
from expertise.policy import Diffusion, DiffusionConfig

FREE = DiffusionConfig(clip=0.0)


def schedule(steps: int) -> tuple[list[float], list[float]]:
    """beta_t and abar_t of the schedule "vp" with rates 0.1 to 10, as the release writes it."""
    alphas = [
        math.exp(-0.1 / steps - 0.5 * (10.0 - 0.1) * (2 * t - 1) / steps**2) for t in range(1, steps + 1)
    ]
    return [1 - alpha for alpha in alphas], [math.prod(alphas[: t + 1]) for t in range(steps)]


def best_guess(mean: float, std: float, kept: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """E[noise | x_t] for data N(mean, std²): what a perfect network would say."""

    def predict(x: Tensor, times: Tensor) -> Tensor:
        abar = torch.tensor(kept, dtype=x.dtype)[times].unsqueeze(1)
        return (1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * std**2 + 1 - abar)

    return predict


def sampled_moments(mean: float, std: float, steps: int, temperature: float = 1.0) -> tuple[float, float]:
    """Mean and standard deviation that the sampler must give: each step is an affine map plus noise."""
    betas, kept = schedule(steps)
    m, v = 0.0, 1.0
    for t in reversed(range(steps)):
        beta, abar = betas[t], kept[t]
        slope = math.sqrt(1 - abar) / (abar * std**2 + 1 - abar)
        factor = beta / math.sqrt(1 - abar)
        scale = (1 - factor * slope) / math.sqrt(1 - beta)
        m = scale * m + factor * slope * math.sqrt(abar) * mean / math.sqrt(1 - beta)
        v = scale**2 * v + (beta * temperature**2 if t else 0.0)
    return m, math.sqrt(v)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_schedule_is_the_release_s(steps: int) -> None:
    betas, kept = schedule(steps)
    config = DiffusionConfig(num_steps=steps)
    assert config.betas() == pytest.approx(betas, rel=1e-12)
    diffusion = Diffusion(config)
    torch.testing.assert_close(diffusion.signal, torch.tensor(kept).sqrt())
    torch.testing.assert_close(diffusion.noise, (1 - torch.tensor(kept)).sqrt())
    assert not diffusion.state_dict(), "the tables follow from the configuration"


def test_noise_is_added_at_each_row_s_own_time() -> None:
    _, kept = schedule(5)
    x, noise = torch.randn(3, 2), torch.randn(3, 2)
    noisy = Diffusion(FREE).add_noise(x, noise, torch.tensor([4, 0, 2]))
    for row, time in enumerate([4, 0, 2]):
        expected = math.sqrt(kept[time]) * x[row] + math.sqrt(1 - kept[time]) * noise[row]
        torch.testing.assert_close(noisy[row], expected)


def test_one_step_back_is_the_mean_of_the_posterior() -> None:
    """DDPM Eqs. 6 and 7: with the true noise, Eq. 11 is the mean of q(x_{t-1} | x_t, x_0)."""
    betas, kept = schedule(5)
    x0, noise = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    diffusion = Diffusion(FREE)
    for t in range(5):
        before = kept[t - 1] if t else 1.0
        xt = math.sqrt(kept[t]) * x0 + math.sqrt(1 - kept[t]) * noise
        mean = (math.sqrt(before) * betas[t] * x0 + math.sqrt(1 - betas[t]) * (1 - before) * xt) / (
            1 - kept[t]
        )
        torch.testing.assert_close(diffusion.mean_before(xt, noise, t), mean)
    torch.testing.assert_close(diffusion.mean_before(xt, noise, 4), mean)


@pytest.mark.parametrize(("steps", "temperature"), [(1, 1.0), (5, 1.0), (5, 0.5), (30, 1.0)])
def test_the_sampler_has_the_moments_that_its_steps_imply(steps: int, temperature: float) -> None:
    mean, std, rows = 0.4, 0.3, 100_000
    config = DiffusionConfig(num_steps=steps, clip=0.0, temperature=temperature)
    noise = torch.randn(steps, rows, 1, generator=torch.Generator().manual_seed(0))
    found = Diffusion(config).sample(best_guess(mean, std, schedule(steps)[1]), noise)
    m, s = sampled_moments(mean, std, steps, temperature)
    assert float(found.mean()) == pytest.approx(m, abs=4 * s / math.sqrt(rows) + 1e-6)
    assert float(found.std()) == pytest.approx(s, rel=4 / math.sqrt(2 * rows) + 1e-5)


def test_many_steps_give_the_data_back() -> None:
    """Two components with data of their own: N(0.4, 0.3²) and N(-1.5, 0.5²)."""
    steps, rows = 300, 20_000
    _, kept = schedule(steps)
    first, second = best_guess(0.4, 0.3, kept), best_guess(-1.5, 0.5, kept)

    def predict(x: Tensor, times: Tensor) -> Tensor:
        return torch.cat([first(x[:, :1], times), second(x[:, 1:], times)], dim=1)

    noise = torch.randn(steps, rows, 2, generator=torch.Generator().manual_seed(0))
    found = Diffusion(DiffusionConfig(num_steps=steps, clip=0.0)).sample(predict, noise)
    assert found.mean(0).tolist() == pytest.approx([0.4, -1.5], abs=0.02)
    assert found.std(0).tolist() == pytest.approx([0.3, 0.5], rel=0.03)


def test_the_best_guess_is_what_the_loss_is_least_for() -> None:
    """The closed form above is no assumption: any change of it raises the mean squared error of the noise."""
    torch.manual_seed(0)
    diffusion, kept = Diffusion(FREE), schedule(5)[1]
    x, noise = 0.4 + 0.3 * torch.randn(200_000, 1), torch.randn(200_000, 1)
    times = torch.randint(5, (200_000,))
    noisy = diffusion.add_noise(x, noise, times)

    def error(mean: float, std: float) -> float:
        return float((best_guess(mean, std, kept)(noisy, times) - noise).square().mean())

    assert error(0.4, 0.3) < min(error(0.3, 0.3), error(0.5, 0.3), error(0.4, 0.2), error(0.4, 0.4))


def test_clipping_holds_at_every_step() -> None:
    seen = []

    def predict(x: Tensor, times: Tensor) -> Tensor:
        seen.append((times.tolist(), float(x.abs().max())))
        return torch.full_like(x, -5.0)

    noise = torch.randn(5, 100, 2, generator=torch.Generator().manual_seed(0))
    found = Diffusion(DiffusionConfig(clip=0.7)).sample(predict, noise)
    assert [times for times, _ in seen] == [[t] * 100 for t in (4, 3, 2, 1, 0)]
    assert seen[0][1] > 1, "what it starts from is not clipped"
    assert all(largest == pytest.approx(0.7) for _, largest in seen[1:])
    assert float(found.abs().max()) == pytest.approx(0.7)


def test_nothing_is_drawn_and_the_last_step_adds_no_noise() -> None:
    diffusion, predict = Diffusion(FREE), best_guess(0.0, 1.0, schedule(5)[1])
    noise = torch.randn(5, 7, 2)
    assert torch.equal(diffusion.sample(predict, noise), diffusion.sample(predict, noise))
    cold = Diffusion(DiffusionConfig(clip=0.0, temperature=0.0))
    once = torch.zeros_like(noise)
    once[0] = noise[0]
    torch.testing.assert_close(cold.sample(predict, noise), diffusion.sample(predict, once))
    for sheet in range(5):
        other = noise.clone()
        other[sheet] += 1
        assert not torch.equal(diffusion.sample(predict, other), diffusion.sample(predict, noise)), sheet


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("steps", [1, 5])
def test_the_schedule_as_numbers_is_what_the_sampler_does(steps: int, temperature: float) -> None:
    """Exported policies are written from these numbers."""
    diffusion = Diffusion(DiffusionConfig(num_steps=steps, clip=0.0, temperature=temperature))
    noise, predict = torch.randn(steps, 6, 2), best_guess(0.3, 0.5, schedule(steps)[1])
    numbers, x = diffusion.schedule(), noise[0]
    assert [step["time"] for step in numbers] == list(range(steps))[::-1]
    for number, step in enumerate(numbers):
        x = (x - step["noise"] * predict(x, torch.full((6,), step["time"]))) / step["kept"]
        x = x + step["added"] * (noise[number + 1] if step["added"] else 0.0)
    torch.testing.assert_close(x, diffusion.sample(predict, noise))
    assert numbers[-1]["added"] == 0.0


def test_the_defaults_are_the_release_s() -> None:
    config = DiffusionConfig()
    found = (config.num_steps, config.beta_min, config.beta_max, config.clip, config.temperature)
    assert found == (5, 0.1, 10.0, 1.0, 1.0)


def test_the_least_and_the_greatest_numbers_are_allowed() -> None:
    DiffusionConfig(num_steps=1, clip=0.0, temperature=0.0)
    DiffusionConfig(beta_min=0.5, beta_max=0.5)
    for wrong in (
        {"beta_min": 0.0},
        {"temperature": -1.0},
        {"num_steps": -1},
        {"beta_min": 0.2, "beta_max": 0.1},
    ):
        with pytest.raises(RecipeError):
            DiffusionConfig(**wrong)


def test_wrong_numbers_are_one_line() -> None:
    with pytest.raises(RecipeError, match=r"^diffusion\.num_steps must be at least 1, not 0$"):
        DiffusionConfig(num_steps=0)
    with pytest.raises(RecipeError, match=r"must not be negative, not -1\.0 and 1\.0$"):
        DiffusionConfig(clip=-1.0)
    with pytest.raises(RecipeError, match=r"beta_min \(2\.0\) must be positive and not above .*\(1\.0\)$"):
        DiffusionConfig(beta_min=2.0, beta_max=1.0)
