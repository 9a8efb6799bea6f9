"""Generate text token by token, with a key-value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from expertise.errors import RecipeError, counted
from expertise.lm.causal import CausalLM
from expertise.shapes import Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for choosing the next token."""

    temperature: float = 1.0
    """Divisor of the logits; 0: take the most likely token."""
    top_k: int | None = None
    """Sample only from this many most likely tokens."""
    top_p: float | None = None
    """Sample only from the most likely tokens that together pass this probability."""
    no_repeat: int | None = None
    """Never repeat a run of this many tokens."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise RecipeError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.no_repeat is not None and self.no_repeat < 1:
            raise RecipeError(f"no_repeat must be at least 1, not {self.no_repeat}")

    def choose(
        self,
        logits: Float[Tensor, "batch vocab"],
        before: Int[Tensor, "batch time"],
        generator: torch.Generator,
    ) -> Int[Tensor, " batch"]:
        """Choose the next token of each row.

        Args:
            logits: logits of the next token.
            before: all tokens of the row so far, for `no_repeat`.
            generator: source of randomness, on the CPU.
        """
        logits = logits.float().cpu()
        if self.no_repeat is not None:
            for row, banned in enumerate(_would_repeat(before.tolist(), self.no_repeat)):
                # A row in which everything is banned would have nothing left to choose.
                if len(banned) < logits.shape[1]:
                    logits[row, list(banned)] = -torch.inf
        if self.temperature == 0:
            return logits.argmax(-1).to(before.device)
        # Relative to the largest, so that they do not overflow at any low temperature.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            # By rank and not by value: equal logits must not widen the choice.
            ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, self.top_k :]
            logits = logits.scatter(-1, ids, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
            probabilities = ordered.softmax(-1)
            before_it = probabilities.cumsum(-1) - probabilities
            dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, before_it > self.top_p)
            logits = logits.masked_fill(dropped, -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].to(before.device)


@dataclasses.dataclass(frozen=True)
class Step:
    """The next token of each row."""

    tokens: Int[Tensor, " batch"]


def stream(
    model: CausalLM,
    tokens: Int[Tensor, "batch time"],
    max_new_tokens: int,
    sampling: Sampling,
    seed: int | None = None,
    stop: tuple[int, ...] = (),
) -> Iterator[Step]:
    """Generate tokens for all rows, one step at a time; stops early when every row has met a stop token.

    Args:
        model: any language model.
        tokens: prompts of equal length.
        max_new_tokens: maximum number of steps.
        sampling: settings of the sampling.
        seed: seed of the sampling; None: a new one.
        stop: ids that end a row.

    Raises:
        RecipeError: the prompt is empty or longer than the context, or holds an unknown token.
    """
    context = model.context
    if tokens.numel() == 0:
        raise RecipeError("an empty prompt: give at least one token")
    if tokens.shape[1] > context:
        raise RecipeError(
            f"the prompt has {counted(tokens.shape[1], 'token')}, the model's context holds {context}",
            "shorten the prompt",
        )
    if int(tokens.max()) >= model.vocab_size or int(tokens.min()) < 0:
        raise RecipeError(f"token ids must lie in 0 … {model.vocab_size - 1}")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise RecipeError(f"a seed must fit 64 bits, {seed} does not")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    tokens = tokens.to(model.device)
    finished = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
    cache, length = model.new_cache(tokens.shape[0]), 0
    fresh = tokens
    for _ in range(max_new_tokens):
        if length + fresh.shape[1] > context:
            # The cache is full: go on with the newer half, read again from its own start.
            fresh = tokens[:, -max(1, context // 2) :]
            cache, length = model.new_cache(tokens.shape[0]), 0
        # Entered again for each step: a generator must not leave its caller in inference mode.
        with torch.inference_mode():
            chosen = sampling.choose(model(fresh, cache)[:, -1], tokens, generator)
        length += fresh.shape[1]
        if stop:
            chosen = torch.where(finished, stop[0], chosen)
            finished |= torch.isin(chosen, torch.tensor(stop, device=chosen.device))
        yield Step(chosen)
        if stop and bool(finished.all()):
            return
        fresh = chosen[:, None]
        tokens = torch.cat([tokens, fresh], dim=1)


def _would_repeat(rows: list[list[int]], length: int) -> Iterator[set[int]]:
    """Yield for each row the tokens that would complete a run of `length` tokens seen before in it."""
    for row in rows:
        tail = row[len(row) - length + 1 :] if length > 1 else []
        starts = range(len(row) - length + 1)
        yield {row[i + length - 1] for i in starts if row[i : i + length - 1] == tail}
