"""The diffusion process: add noise to vectors, and sample vectors from noise. It knows no policies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from expertise.errors import RecipeError
from expertise.shapes import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Steps, schedule and sampler. The defaults are those of PSEC's release."""

    num_steps: Annotated[int, Ge(1)] = 5
    """T, steps between data and noise (release: 5)."""
    beta_min: Annotated[float, Gt(0)] = 0.1
    """Smallest rate of the schedule "vp" (release: 0.1)."""
    beta_max: Annotated[float, Gt(0)] = 10.0
    """Largest rate of the schedule "vp" (release: 10)."""
    clip: Annotated[float, Ge(0)] = 1.0
    """Bound of every component after every step of the sampler (release: 1); 0: no bound."""
    temperature: Annotated[float, Ge(0)] = 1.0
    """Factor on the noise that the sampler adds after each step but the last (release: 1)."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise RecipeError(f"diffusion.num_steps must be at least 1, not {self.num_steps}")
        if self.clip < 0 or self.temperature < 0:
            raise RecipeError(
                f"diffusion.clip and diffusion.temperature must not be negative, not {self.clip} and "
                f"{self.temperature}"
            )
        if not 0 < self.beta_min <= self.beta_max:
            raise RecipeError(
                f"diffusion.beta_min ({self.beta_min}) must be positive and not above "
                f"diffusion.beta_max ({self.beta_max})"
            )

    def betas(self) -> list[float]:
        """Return the schedule "vp" of PSEC and IDQL (arXiv 2304.10573): share of noise that each step adds.

        beta_t = 1 - exp(-beta_min / T - (beta_max - beta_min) (2 t - 1) / (2 T^2)) for t = 1 … T.
        """
        steps, spread = self.num_steps, self.beta_max - self.beta_min
        rates = (self.beta_min / steps + spread * (2 * t - 1) / (2 * steps**2) for t in range(1, steps + 1))
        return [-math.expm1(-rate) for rate in rates]


class Diffusion(nn.Module):
    """A variance-preserving diffusion in discrete time (DDPM, arXiv 2006.11239).

    Times are 0 … T - 1; x at time t has t + 1 steps of noise. The module has no weights: its two tables
    follow from the configuration and are not in checkpoints.

    Args:
        config: steps, schedule and sampler.
    """

    signal: Tensor
    """Factor of the data at each time: sqrt(abar_t) [T]."""
    noise: Tensor
    """Factor of the noise at each time: sqrt(1 - abar_t) [T]."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.num_steps = config.num_steps
        self._betas = config.betas()
        kept = torch.tensor([1 - beta for beta in self._betas], dtype=torch.float64).cumprod(0)
        # Numbers for the sampler, which knows its times in Python; tables for training, which does not.
        self._kept = kept.tolist()
        self.register_buffer("signal", kept.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - kept).sqrt().float(), persistent=False)

    def add_noise(
        self, x: Float[Tensor, "rows dim"], noise: Float[Tensor, "rows dim"], times: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows dim"]:
        """Return noisy x at each row's time: sqrt(abar_t) x + sqrt(1 - abar_t) noise (DDPM Eq. 4).

        Args:
            x: data.
            noise: standard normal numbers.
            times: 0 … T - 1.
        """
        return self.signal[times].unsqueeze(1) * x + self.noise[times].unsqueeze(1) * noise

    def mean_before(
        self, x: Float[Tensor, "rows dim"], predicted: Float[Tensor, "rows dim"], time: int
    ) -> Float[Tensor, "rows dim"]:
        """Return the mean of x one step before `time`, given the predicted noise (DDPM Eq. 11).

        Args:
            x: the vector at `time`.
            predicted: the predicted noise in it.
            time: 0 … T - 1.
        """
        beta = self._betas[time]
        return (x - beta / math.sqrt(1 - self._kept[time]) * predicted) / math.sqrt(1 - beta)

    def sample(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        noise: Float[Tensor, "steps rows dim"],
    ) -> Float[Tensor, "rows dim"]:
        """Turn noise into data (DDPM, algorithm 2, with variance beta_t); uses only the given noise.

        Args:
            predict: (x [rows, dim], times [rows] int64) → the noise in x [rows, dim].
            noise: T sheets of standard normal numbers: the sampler starts at the first and adds sheet k after
                its k-th step. So nothing is added after the last step.

        Returns:
            Data, within ±`clip` if that is set.
        """
        x, clip = noise[0], self.config.clip
        for sheet, time in enumerate(range(self.num_steps - 1, -1, -1), 1):
            times = torch.full((x.shape[0],), time, device=x.device)
            x = self.mean_before(x, predict(x, times), time)
            if time:
                x = x + math.sqrt(self._betas[time]) * self.config.temperature * noise[sheet]
            if clip:
                x = x.clamp(-clip, clip)
        return x

    def schedule(self) -> list[dict[str, Any]]:
        """Return the constants of each step of `sample`.

        x becomes `(x - noise * predicted) / kept`, then `added` times the next sheet is added to it.
        """
        return [
            {
                "time": time,
                "noise": self._betas[time] / math.sqrt(1 - self._kept[time]),
                "kept": math.sqrt(1 - self._betas[time]),
                "added": math.sqrt(self._betas[time]) * self.config.temperature if time else 0.0,
            }
            for time in range(self.num_steps - 1, -1, -1)
        ]
