"""Bits per byte per domain, and the use of every part on the same tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from expertise.lm.alpha import Alpha
from expertise.lm.causal import CausalLM
from expertise.lm.data import IGNORED, EvaluationWindows, Readable, evaluation_windows
from expertise.mixture.balance import exact
from expertise.mixture.measures import Usage
from expertise.mixture.mixture import recording
from expertise.mixture.routes import Routes
from expertise.runs.device import products
from expertise.runs.progress import number
from expertise.shapes import Float, Int

LARGEST_LOGITS = 2**28
"""Maximum number of logits of a batch: a gibibyte in float32."""


@dataclasses.dataclass(frozen=True)
class DomainText:
    """Held-out text of one domain, cut into windows."""

    domain: str
    windows: EvaluationWindows


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of one pass over held-out text."""

    bits_per_byte: dict[str, float | None]
    """Bits per byte of each domain; None if no byte was predicted."""
    num_bytes: dict[str, int]
    """UTF-8 bytes that were predicted; of records only those that are learnt."""
    usage: dict[int, Usage]
    """Mixture layer → use of its parts; the domains are in the order of `bits_per_byte`."""
    skills: dict[str, dict[str, float | None]] = dataclasses.field(default_factory=dict)
    """Of a composed model: domain → skill → mean weight over layers and counted tokens."""

    @property
    def mean_bits_per_byte(self) -> float | None:
        """Mean over the domains that have a value, each with the same weight; None: no domain has one."""
        return _mean(self.bits_per_byte.values())

    def mean_parts_per_token(self) -> float | None:
        """Mean over tokens and mixture layers; 0 for a dense model, None where no token counted."""
        return _mean(usage.parts_per_token() for usage in self.usage.values()) if self.usage else 0.0

    def rounded_bits(self) -> dict[str, float | None]:
        """Return bits per byte of each domain, and their `mean`, with five digits."""
        return {
            **{domain: _rounded(bits, 5) for domain, bits in self.bits_per_byte.items()},
            "mean": _rounded(self.mean_bits_per_byte, 5),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers: `bits_per_byte`, `bytes`, `parts_per_token`, `loads` (relative), `skills`.

        A mean over nothing is None.
        """
        result: dict[str, Any] = {"bits_per_byte": self.rounded_bits(), "bytes": self.num_bytes}
        if self.usage:
            layers = list(self.usage.values())
            by_domain = [usage.parts_per_token_by_domain() for usage in layers]
            result["parts_per_token"] = {
                "mean": _rounded(self.mean_parts_per_token(), 4),
                "layers": [_rounded(usage.parts_per_token(), 4) for usage in layers],
                "domains": {
                    domain: _rounded(_mean(row[i] for row in by_domain), 4)
                    for i, domain in enumerate(self.bits_per_byte)
                },
            }
            if any(usage.num_tokens for usage in layers):
                result["loads"] = [[round(float(x), 4) for x in usage.load()] for usage in layers]
        if self.skills:
            result["skills"] = {
                d: {k: _rounded(v, 4) for k, v in row.items()} for d, row in self.skills.items()
            }
        return result


def in_words(bits_per_byte: Mapping[str, float | None]) -> str:
    """Describe the mean and each domain in a few words."""
    shown = {name: number(bits, 3) for name, bits in bits_per_byte.items()}
    mean = shown.pop("mean")
    return f"{mean} bits per byte ({', '.join(f'{name} {bits}' for name, bits in shown.items())})"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def domain_texts(prepared: Readable, split: str, max_bytes: int, context: int) -> list[DomainText]:
    """Return held-out windows of every domain that has text in this split.

    Args:
        prepared: text and tokenizer.
        split: "validation" or "test", or "all" of text that is not divided.
        max_bytes: at most so many bytes of each domain; 0: all.
        context: tokens per window.
    """
    return [
        DomainText(domain, evaluation_windows(prepared, split, domain, max_bytes, context))
        for domain in prepared.domains_of(split)
    ]


def evaluate(
    model: CausalLM,
    texts: list[DomainText],
    batch_size: int,
    bfloat16: bool = False,
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Evaluate a model in one pass over held-out text.

    Args:
        model: in any mode; its mode does not change.
        texts: from `domain_texts`.
        batch_size: windows per batch; fewer where their logits would fill the memory.
        bfloat16: compute products in bfloat16, as in training with bfloat16.
        between: called after each batch; it may raise to stop the pass.
    """
    bits: dict[str, float | None] = {}
    usage: dict[int, Usage] = {}
    skills: dict[str, dict[str, float | None]] = {}
    names = Alpha(model).names
    for index, text in enumerate(texts):
        nll, num_counted, alpha = 0.0, 0, torch.zeros(len(names), dtype=torch.float64)
        for batch in passes(model, text, batch_size, bfloat16):
            nll += float(batch.losses.double().sum())
            counted = batch.targets.flatten() != IGNORED
            domains = torch.where(counted, index, -1)
            for layer, record in batch.routes.items():
                if layer not in usage:
                    usage[layer] = Usage(record.num_parts, len(texts), record.num_slots)
                usage[layer].add(record, domains)
            num_counted += int(counted.sum())
            if batch.alpha is not None:
                alpha += batch.alpha[counted].double().sum(0).cpu()
            if between is not None:
                between()
        num_bytes = text.windows.num_bytes
        # A few bytes may be less than a character: then nothing was predicted, and 0 would look perfect.
        bits[text.domain] = nll / math.log(2) / num_bytes if num_bytes and num_counted else None
        if names:
            means = (alpha / num_counted).tolist() if num_counted else [None] * len(names)
            skills[text.domain] = dict(zip(names, means, strict=True))
    return Evaluation(bits, {text.domain: text.windows.num_bytes for text in texts}, usage, skills)


class Pass(NamedTuple):
    """A batch of windows with the model's losses, routes and skill weights."""

    tokens: Int[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]
    losses: Float[Tensor, " tokens"]
    """Loss of each target, in nats; 0 where it is ignored."""
    routes: dict[int, Routes]
    """Mixture layer → routes of the tokens."""
    alpha: Float[Tensor, "tokens skills"] | None
    """Of a composed model: the weights of its skills, the mean over layers."""


def passes(model: CausalLM, text: DomainText, batch_size: int, bfloat16: bool = False) -> Iterator[Pass]:
    """Run held-out windows through a model, batch by batch."""
    windows, device, alpha = text.windows, model.device, Alpha(model)
    logits_of_one = max(1, windows.tokens.shape[1] * model.vocab_size)
    batch_size = max(1, min(batch_size, LARGEST_LOGITS // logits_of_one))
    autocast = products(device, bfloat16)
    for start in range(0, len(windows.tokens), batch_size):
        tokens = windows.tokens[start : start + batch_size].to(device)
        targets = windows.targets[start : start + batch_size].to(device)
        documents = windows.documents
        if documents is not None:
            documents = documents[start : start + batch_size].to(device)
        with torch.inference_mode(), recording(model.core), alpha.recording():
            with autocast:
                logits = model(tokens, documents=documents)
            losses = F.cross_entropy(
                exact(logits.flatten(0, 1)), targets.flatten(), reduction="none", ignore_index=IGNORED
            )
        routes = {layer: mixture.last_routes for layer, mixture in model.mixtures().items()}
        routes_taken = {k: v for k, v in routes.items() if v is not None}
        yield Pass(tokens, targets, losses, routes_taken, alpha.last(*tokens.shape))
